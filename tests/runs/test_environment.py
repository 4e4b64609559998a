"""What a run says of the machine: nothing personal."""

from __future__ import annotations

from pathlib import Path

import pytest

from fieldmark.runs.environment import anonymous


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("name/photos", "photos"),
        ("name/photos/", "photos"),
        ("./name/photos", "photos"),
        ("../name//photos", "photos"),
        ("/srv/o'neil/my photos", "my photos"),
        ('/srv/"x"/photos', "photos"),
        ("C:\\Users\\name\\photos", "photos"),
        ("--out=name/run 1", "--out=run 1"),
        ("labels_csv:name/labels.csv", "labels.csv"),
        ("~name", "~"),
        ("--out=~name", "--out=~"),
        ("~name/photos", "photos"),
        ("name\n/photos", "photos"),
        ("/srv/alice", "~"),
        ("--out=alice", "--out=~"),
        ("alice-photos", "~-photos"),
        ("C:\\Users\\ALICE", "~"),
        ("malice", "malice"),
        ("photos", "photos"),
        ("timm/resnet18", "resnet18"),
        ("pad_crop(4)|flip_lr", "pad_crop(4)|flip_lr"),
        ("--alice", "--alice"),
        ("", ""),
        (".", "."),
        ("/", ""),
    ],
)
def test_the_words_of_the_command_keep_no_folder_and_no_user(
    word: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "alice")
    monkeypatch.setattr(Path, "home", lambda: Path("/srv/alice"))
    for name in ("LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert anonymous(["train", word]) == ("train", kept)


def test_a_user_called_as_a_command_hides_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "train")
    assert anonymous(["train", "photos"]) == ("train", "photos")
