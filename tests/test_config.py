from pathlib import Path

import pytest
from pydantic import Field, model_validator

from dmcodec.config import ConfigError, Record, apply_assignments, load_config, parse_assignment


class Engine(Record):
    power: float = 1.0
    gears: tuple[int, ...] = (1, 2)


class Car(Record):
    name: str = "car"
    num_wheels: int = Field(4, ge=3)
    is_fast: bool = False
    engine: Engine = Engine()
    shares: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "Car":
        if self.is_fast and self.engine.power < 2:
            raise ValueError("a fast car needs power")
        return self


@pytest.fixture
def car_file(tmp_path: Path) -> Path:
    path = tmp_path / "car.toml"
    path.write_text('name = "red"\n[engine]\npower = 3.5\ngears = [1, 2, 3]\n')
    return path


def test_file_fills_the_record(car_file):
    car = load_config(car_file, Car)

    assert car == Car(name="red", engine=Engine(power=3.5, gears=(1, 2, 3)))


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("a=3", ["a"], 3),
        ("a.b=1e-4", ["a", "b"], 1e-4),
        (" a . b = true", ["a", "b"], True),
        ("a=[1, 2]", ["a"], [1, 2]),
        ('a="3"', ["a"], "3"),
        ('a=""', ["a"], ""),
        ("a={}", ["a"], {}),
        ("a=b/c.jsonl", ["a"], "b/c.jsonl"),
        ("a=x=y", ["a"], "x=y"),
        ("a=1\nb=2", ["a"], "1\nb=2"),
        ("a=" + "[" * 9999, ["a"], "[" * 9999),
    ],
)
def test_assignment_is_read_as_toml_or_as_text(assignment, path, value):
    assert parse_assignment(assignment) == (path, value)


@pytest.mark.parametrize("assignment", ["a", "=3", "a..b=3", ".a=3", "a=", "a=  ", ""])
def test_malformed_assignment_is_refused(assignment):
    with pytest.raises(ConfigError, match="write key=value"):
        parse_assignment(assignment)


def test_assignments_change_nested_values_and_leave_the_others(car_file):
    car = load_config(car_file, Car, ["engine.power=4", "num_wheels=3", "shares.left=0.5"])

    assert car.engine == Engine(power=4.0, gears=(1, 2, 3))
    assert car.num_wheels == 3
    assert car.shares == {"left": 0.5}


def test_later_assignment_wins_and_the_table_is_not_changed():
    table = {"engine": {"power": 1}}

    assert apply_assignments(table, ["engine.power=2", "engine.power=3"])["engine"]["power"] == 3
    assert table == {"engine": {"power": 1}}


def test_assignment_below_a_value_is_refused():
    with pytest.raises(ConfigError, match="'power' is not a group"):
        apply_assignments({"engine": {"power": 1}}, ["engine.power.more=2"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("colour=blue", "unknown key 'colour'"),
        ("engine.pwoer=3", "unknown key 'engine.pwoer'"),
        ("enigne.power=3", "unknown key 'enigne'"),
        ("num_wheels=2", "num_wheels: .*greater than or equal to 3"),
        ("num_wheels=3.5", "num_wheels: "),
        ("engine.power=much", "engine.power: .*number"),
    ],
)
def test_wrong_key_or_value_is_named_with_the_file(car_file, assignment, message):
    with pytest.raises(ConfigError, match=f"car.toml: {message}"):
        load_config(car_file, Car, [assignment])


def test_every_wrong_key_is_named(car_file):
    with pytest.raises(ConfigError, match=r"'engine.pwoer'; unknown key 'colour'"):
        load_config(car_file, Car, ["colour=blue", "engine.pwoer=3"])


def test_rule_between_keys_is_told_in_its_own_words(car_file):
    with pytest.raises(ConfigError, match=r"car.toml: a fast car needs power$"):
        load_config(car_file, Car, ["is_fast=true", "engine.power=1"])


@pytest.mark.parametrize(
    "content",
    [
        b"name = ",
        b"[engine\n",
        b'name = "\xff"\n',
        b"name = " + b"[" * 9999,
        b"name = " + b"1" * 9999,
    ],
)
def test_malformed_file_is_named(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load_config(path, Car)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.toml"):
        load_config(tmp_path / "missing.toml", Car)


def test_record_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Car().num_wheels = 5
