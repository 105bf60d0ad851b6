"""Files are written whole or not at all, also when the disk is full."""

import subprocess
from pathlib import Path

import pytest
from repository import PROGRAMS

from mi_llm import storage
from mi_llm.compare import stages
from mi_llm.problem import Problem


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    storage.write_text(path, "old")

    def interrupted() -> None:
        with storage.replacing(path) as file:
            file.write(b"half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_error_and_nothing_is_half_written(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        storage.write_text(small / "answers.jsonl", "old")
        with pytest.raises(Problem, match=r"No space left on device.*the previous file is unchanged"):
            storage.write_text(small / "answers.jsonl", "x" * 1_000_000)
        assert (small / "answers.jsonl").read_text() == "old"
        assert [path.name for path in small.iterdir()] == ["answers.jsonl"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_problem_is_shown_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("name: [", encoding="utf-8")
    command = [str(PROGRAMS / "mi-llm"), "split", "--study", str(tmp_path / "params.yaml")]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert shown.stderr.startswith("mi-llm: ")
    assert "what to do:" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_place_where_nothing_can_be_written_or_read_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content", encoding="utf-8")
    with pytest.raises(Problem, match=r"(?s)file/inside: could not be written \(File exists\).*a writable folder"):
        storage.write_text(file / "inside", "text")
    with pytest.raises(Problem, match=r"could not be read \(Is a directory\)"):
        storage.read_text(tmp_path)
    with pytest.raises(Problem, match=r"could not be read \(Not a directory\)"):
        storage.read_text(file / "inside")
    assert file.read_text(encoding="utf-8") == "content"


BOMB = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (BOMB, "over 10,000,000 characters once its aliases are written out"),
        ("a: &a {b: *a}", "over 10,000,000 characters"),
        ("seed: " + "9" * 5000, "not YAML: Exceeds the limit"),
        ("seed: 0x" + "f" * 5_000_000, "over 10,000,000 characters"),
        ("models: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("day: 2026-13-45", "not YAML: month must be in"),
    ],
)
def test_yaml_that_would_fill_the_memory_is_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(Problem) as refusal:
        storage.read_yaml(tmp_path / "params.yaml")
    assert refusal.value.found.startswith(found)
    with pytest.raises(Problem) as refusal:
        stages(text)
    assert refusal.value.found.startswith(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [("[" * 90_000, "nested too deeply"), ("9" * 5000, "a number of more digits"), ('{"a"', "not JSON (Expecting")],
)
def test_json_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "lines.jsonl").write_text(f"{{}}\n{text}\n", encoding="utf-8")
    with pytest.raises(Problem) as refusal:
        list(storage.read_lines(tmp_path / "lines.jsonl"))
    assert refusal.value.where.endswith("lines.jsonl, line 2")
    assert refusal.value.found.startswith(found)
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    with pytest.raises(Problem) as refusal:
        storage.read_json(tmp_path / "file.json")
    assert refusal.value.where.endswith("file.json, line 1")


def test_canonical_json_does_not_depend_on_order() -> None:
    assert storage.dump({"b": "，", "a": 1}) == storage.dump({"a": 1, "b": "，"}) == '{"a": 1, "b": "，"}'


def test_a_text_with_any_line_separator_comes_back_as_it_was(tmp_path: Path) -> None:
    written = [{"text": f"前{separator}后"} for separator in "\n\r\v\f\x1c\x85\u2028\u2029"]
    storage.write_lines(tmp_path / "lines.jsonl", written)
    assert list(storage.read_lines(tmp_path / "lines.jsonl")) == written
