"""Each file that a verifier needs, missing alone while the others are there: one sentence says how to get it."""

from pathlib import Path, PurePosixPath

import pytest

from pack.search import SearchError
from pack.tests.verifiers.conftest import loaded
from pack.verifiers import VERIFIERS
from pack.verifiers.files import Source
from pack.verifiers.kinds import Setting, VerifierKind

FILES = [(kind, s) for kind in VERIFIERS.values() for s in kind.settings if s.kind == "file" and not s.optional]


def source_of(kind: VerifierKind, setting: Setting) -> Source | None:
    """The source whose download is the default of a setting; None for a file that no one can download."""
    found = [s for s in kind.sources if setting.default in {download.path for download in s.downloads}]
    return found[0] if found else None


@pytest.mark.parametrize(("kind", "setting"), FILES, ids=lambda part: getattr(part, "key", None) or part.name)
def test_a_file_that_is_missing_alone_is_named_with_its_own_source(
    kind: VerifierKind, setting: Setting, tmp_path: Path
) -> None:
    suffix = PurePosixPath(str(setting.default)).suffix
    with pytest.raises(SearchError) as caught:
        loaded(kind.key, tmp_path, **{setting.name: str(tmp_path / f"not/there{suffix}")})
    said = str(caught.value)
    assert f"there{suffix}" in said and "\n" not in said
    source = source_of(kind, setting)
    assert source is None or str(source) in said


def test_files_beside_the_weights_are_named_too(tmp_path: Path) -> None:
    """ImageReward needs the vocabulary of BERT beside it, under a name that is in no setting."""
    loaded("image_reward", tmp_path)
    [vocabulary] = tmp_path.rglob("vocab.txt")
    vocabulary.unlink()
    with pytest.raises(SearchError, match="vocab.txt") as caught:
        loaded_without(tmp_path)
    assert str(VERIFIERS["image_reward"].sources[1]) in str(caught.value)


def loaded_without(folder: Path) -> None:
    """Load what lies in a folder, without writing the sample there again."""
    [weights] = [path for path in folder.rglob("*") if path.suffix in (".pt", ".safetensors")]
    VERIFIERS["image_reward"].load(file=str(weights))
