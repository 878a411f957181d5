"""Give the tests the import name `pack`; pytest reads this file before any test file."""

import importlib.util
import sys
from pathlib import Path

if "pack" not in sys.modules:
    spec = importlib.util.spec_from_file_location("load_pack", Path(__file__).resolve().with_name("load_pack.py"))
    assert spec is not None and spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    loader.hide_root()
    loader.load_pack()
