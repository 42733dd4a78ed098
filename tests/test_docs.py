"""What can be set, counted, refused, logged or commanded is documented, and nothing else is."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from coapgate.cli import app
from coapgate.config import load
from coapgate.config.loading import Key, description, options
from coapgate.dtls.counters import Drop
from coapgate.errors import ALERTS, Reason
from coapgate.metrics import FAMILIES, Family

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")])
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def rows(document: str) -> dict[str, list[str]]:
    """Tables' rows by their first cell, without its quotes."""
    found = {}
    for line in document.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells:
            for name in cells[0].split("`, `"):
                found[name.strip("`")] = cells[1:]
    return found


def shown(default: object) -> str:
    match default:
        case None:
            return "–"  # noqa: RUF001 - an en dash stands for nothing
        case tuple():
            return f'`"{default[0]}"`'
        case int() | float():
            return f"`{default!r}`"
        case _:
            return f'`"{default}"`'


@pytest.mark.parametrize("key", dict(options()), ids=".".join)
def test_every_option_is_documented_with_its_default(key: Key) -> None:
    default = dict(options())[key]

    assert rows(CONFIGURATION)[".".join(key)] == [shown(default), description(key)]


def test_no_option_is_documented_that_does_not_exist() -> None:
    tables = "|".join({key[0] for key in dict(options()) if len(key) == 2})
    # ARCHITECTURE.md names modules in the same way.
    read = "".join(file.read_text() for file in DOCUMENTS if file.name != "ARCHITECTURE.md")

    named = re.findall(rf"`((?:{tables})\.[a-z_]+)`", read)

    files = {"registry.db", "registry.key"}
    assert {tuple(name.split(".")) for name in set(named) - files} <= dict(options()).keys()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_metric_is_documented(family: Family) -> None:
    label = f"`{family.label}`" if family.label else ""

    assert rows(OPERATIONS)[family.name] == [label, family.help]


def test_no_metric_is_documented_that_does_not_exist() -> None:
    named = re.findall(r"\bcoapgate_[a-z_]+", "".join(map(Path.read_text, DOCUMENTS)))

    assert set(named) <= {family.name for family in FAMILIES}


@pytest.mark.parametrize("reason", Reason)
def test_every_refusal_is_documented_with_what_the_peer_is_told(reason: Reason) -> None:
    alert = ALERTS[reason]
    told = "nothing" if alert is None else f"alert {alert.value} {alert.name.lower()}"

    assert rows(OPERATIONS)[str(reason)][-1] == told


def test_every_reason_to_drop_is_documented() -> None:
    (table,) = re.findall(r"dropped_total` tells.*?\n\n(.*?)\n\n", OPERATIONS, re.DOTALL)

    assert rows(table).keys() - {"reason", "---"} == set(Drop)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_value_of_a_label_is_explained(family: Family) -> None:
    for value in family.values:
        assert re.search(rf"`{value}`|\b{value}[,.]", OPERATIONS), value


def test_alerts_are_on_labels_and_values_that_exist() -> None:
    families = {family.name: family for family in FAMILIES}
    asked = re.findall(r'(coapgate_\w+)\{(\w+)=~?"([^"]+)"\}', OPERATIONS)

    assert asked
    for name, label, values in asked:
        family = families[name]
        assert family.label == label, name
        known = family.values or set(Drop)
        assert set(values.replace("\\", "").split("|")) <= set(known), (name, values)


def messages() -> Iterator[str]:
    """Constant messages that the gateway logs for an operator: from INFO up to WARNING."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Name("log") | ast.Attribute(attr="_log"),
                        attr="info" | "warning",
                    ),
                    args=[ast.Constant(str(message)), *_],
                ):
                    yield message
                case ast.Call(
                    func=ast.Attribute(value=ast.Name("log"), attr="log"),
                    args=[_, ast.Constant(str(message)), *_],
                ):
                    yield message


@pytest.mark.parametrize("message", sorted(set(messages())))
def test_every_log_message_is_documented(message: str) -> None:
    assert message in rows(OPERATIONS)


def commands() -> dict[str, TyperCommand]:
    """Every command, by what one types."""

    def below(name: str, command: object) -> Iterator[tuple[str, TyperCommand]]:
        if isinstance(command, TyperGroup):
            for inner, each in command.commands.items():
                yield from below(f"{name} {inner}", each)
        elif isinstance(command, TyperCommand):
            yield name, command

    return dict(below("coapgate", typer.main.get_command(app)))


def test_every_command_is_documented_and_helps() -> None:
    for name, command in commands().items():
        assert name in rows(OPERATIONS), name
        assert command.help, name


def test_no_command_is_documented_that_does_not_exist() -> None:
    documented = {name for name in rows(OPERATIONS) if name.startswith("coapgate ")}

    assert documented == commands().keys()


def blocks(language: str) -> Iterator[str]:
    """Blocks of code in the documents."""
    for document in DOCUMENTS:
        yield from re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


def test_every_command_in_an_example_can_be_typed() -> None:
    first_words = {name.split()[1] for name in commands()}
    typed = re.compile(rf"\bcoapgate (?:{'|'.join(first_words)})\b.*")
    lines = [line for block in blocks("sh") for line in typed.findall(block.replace("\\\n", ""))]

    assert lines
    for line in lines:
        words = shlex.split(line)
        (name,) = (known for known in commands() if line.startswith(known))
        flags = {flag for parameter in commands()[name].params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= flags, line


def test_every_configuration_in_an_example_is_accepted(tmp_path: Path) -> None:
    for number, block in enumerate(blocks("toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        load(file)


def test_every_link_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_documents_say_nothing_of_later_work_or_other_machines() -> None:
    for document in DOCUMENTS:
        text = document.read_text()
        for word in ("TODO", "FIXME", "XXX", "/home/"):
            assert word not in text, f"{document.name}: {word}"
