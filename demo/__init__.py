"""The demo world: a tiny text-to-image model, a tiny CLIP and an exact judge, all made from drawn shapes."""
