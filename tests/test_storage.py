"""Files are wholly old or wholly new, and equal content gives equal bytes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from safetensors.torch import load, save_file

from lib_custom_diffusion import storage
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.reading import read_document


def test_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.bin"
    storage.write_atomically(path, b"old")
    storage.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["a.bin"]


def test_full_disk_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="No space left"):
        storage.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_killed_process_left_aside_goes_when_another_writes_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture killed half-way is cleared by the next picture, whatever that is called; nothing else is touched."""
    child = os.fork()
    if not child:
        monkeypatch.setattr(os, "replace", lambda *_: os._exit(9))
        storage.write_atomically(tmp_path / "1.png", b"x")
    os.waitpid(child, 0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    others = (".1.png.tmp", "1.png.abcd_123.tmp", ".1.txt.abcd_123.tmp", ".png.abcd_123.tmp", ".1.png.ABCDEFGH.tmp")
    for name in others:
        (tmp_path / name).touch()
    storage.write_atomically(tmp_path / "2.png", b"y")
    assert {path.name for path in tmp_path.iterdir()} == {"2.png", *others}


def test_what_another_process_takes_for_a_leftover_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def cleared_meanwhile(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        storage._remove_leftovers.__wrapped__(tmp_path, ".png")  # as another process, which has not done so yet
        assert not os.listdir(tmp_path)

    monkeypatch.setattr(os, "fsync", cleared_meanwhile)
    storage.write_atomically(tmp_path / "1.png", b"x")
    assert os.listdir(tmp_path) == ["1.png"]
    assert (tmp_path / "1.png").read_bytes() == b"x"


def test_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="choose another folder"):
        storage.write_atomically(tmp_path / "file" / "a.bin", b"")


def test_a_lock_that_cannot_be_removed_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(UserError, match="the real one"), storage.FolderLock(tmp_path):
        monkeypatch.setattr(Path, "unlink", read_only)
        raise UserError("the real one")
    monkeypatch.undo()
    with storage.FolderLock(tmp_path):
        pass
    assert not os.listdir(tmp_path)


def test_a_lock_that_another_user_has_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_ours(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", not_ours)
    with pytest.raises(UserError, match=r"cannot write to \S+/\.lock: Permission denied"), storage.FolderLock(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="an open file is not removed there")
@pytest.mark.parametrize("another_waits", [False, True])
def test_a_lock_whose_file_is_removed_while_it_is_opened_holds_the_folder_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another_waits: bool
) -> None:
    lock = storage._lock

    def who_had_it_leaves(file: BinaryIO) -> None:
        monkeypatch.setattr(storage, "_lock", lock)
        (tmp_path / ".lock").unlink()
        if another_waits:
            (tmp_path / ".lock").touch()
        lock(file)

    monkeypatch.setattr(storage, "_lock", who_had_it_leaves)
    with storage.FolderLock(tmp_path), pytest.raises(UserError, match="another training"):
        storage.FolderLock(tmp_path).__enter__()
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="no modes on this system")
def test_a_file_is_for_whom_any_new_file_is(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.write_atomically(tmp_path / "a.bin", b"x")
        assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(UserError, match="it is not a regular file; give another"):
            storage.write_atomically(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfcaf\xc3\xa9\r\nb\rc\n", "café\nb\nc\n"),
        ("café\r\nb".encode("utf-16"), "café\nb"),
        (b"\xfe\xff" + "café".encode("utf-16-be"), "café"),
        (b"", ""),
        (b"a\tb\x0c\x85c".replace(b"\x85", b"\xc2\x85"), "a\tb\x0c\x85c"),
    ],
)
def test_texts_of_editors_are_read_as_they_were_written(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert storage.read_text(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    "content",
    [
        "cat".encode("utf-16-le"),
        "кот".encode("utf-16-le"),  # which has no NULs, and is UTF-8 by chance
        "cat".encode("utf-32"),
        "café".encode("latin-1"),
        "кот".encode("cp1251"),
        b"\xff\xfea",
        b"\xff\xfe\x00\xd8",
        b"a \x1b[31mcat",
    ],
)
def test_what_is_no_text_is_told_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"the cats in a cannot be read: it is not text in UTF-8; give a text file"):
        storage.read_text(tmp_path / "a.txt", "the cats in a")


def test_files_that_cannot_be_texts_are_told(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for name, said in (("huge", "more than 64 MB"), (".", "Is a directory"), ("gone", "there is no such file")):
        with pytest.raises(UserError, match=said):
            storage.read_text(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was opened"))
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="it is not a regular file"):
            storage.read_text(path)


def test_other_processes_write_the_same_bytes() -> None:
    program = (
        "import torch, hashlib; from lib_custom_diffusion.storage import safetensors_bytes as b;"
        "content = b({'x': torch.ones(3), 'y': torch.zeros(2)}, {f'k{i}': 'v' for i in range(9)});"
        "print(hashlib.sha256(content).hexdigest())"
    )
    root = Path(__file__).parent.parent
    hashes = {subprocess.check_output([sys.executable, "-c", program], cwd=root) for _ in range(2)}
    assert len(hashes) == 1


def test_document_is_read_by_the_library() -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(1, dtype=torch.float16)}
    read = load(storage.safetensors_bytes(tensors, {"z": "é", "a": '{"x": 1}'}))
    assert set(read) == {"a", "b"}
    assert torch.equal(read["b"], tensors["b"])


def test_order_in_which_metadata_was_given_does_not_count() -> None:
    tensors = {"x": torch.ones(1)}
    assert storage.safetensors_bytes(tensors, {"a": "1", "b": "2"}) == storage.safetensors_bytes(
        tensors, {"b": "2", "a": "1"}
    )


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        (' "C:/my pictures" ', "C:/my pictures"),
        ("'/a b'", "/a b"),
        ("/a'b", "/a'b"),
        ('"', '"'),
        ("~/cats", "~/cats"),
        ("“/a b”", "/a b"),
        ("file:///a%20b", "/a b"),
    ],
)
def test_a_path_may_be_quoted_as_it_was_copied(typed: str, path: str) -> None:
    assert storage.typed_path(typed) == Path(path).expanduser()


def test_a_tilde_is_the_home_folder_and_somebody_without_one_stays_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    assert storage.given_path("~/cats") == Path("/home/me/cats")
    assert storage.given_path("~nobody-at-all/cats") == Path("~nobody-at-all/cats")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\0b", r"'a\\x00b' is not a valid"),
        ("\ud800", r"'\\ud800' is not a valid path"),
        ("n" * 300, "'n{20}'… is too long"),
    ],
)
def test_what_no_path_can_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        storage.typed_path(text)


@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + "/sub", "loop", "loop/sub", "file/sub"])
def test_folders_that_cannot_be_are_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*; choose another folder"):
        storage.check_writable(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there all names are text")
def test_a_folder_whose_files_safetensors_cannot_open_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"jos\xe9") / "out"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"the folder '.*jos\\udce9/out' has bytes that are not text in its name"):
        storage.check_output(folder / "a.delta.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(folder / "a.safetensors")
    with pytest.raises(UserError, match="its name, or its folder's, is not in UTF-8; rename it"):
        read_document(folder / "a.safetensors")
