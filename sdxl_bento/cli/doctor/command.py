"""`sdxl-bento doctor`: what is wrong, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from sdxl_bento.cli.failures import ExitCode
from sdxl_bento.cli.options import Json, Url
from sdxl_bento.cli.terminal import emit_json, reporting, stderr

if TYPE_CHECKING:
    from sdxl_bento.cli.doctor.findings import Finding

_MARKS = {"good": "[green]✔[/]", "note": "[blue]·[/]", "warning": "[yellow]![/]"}
_MARKS["problem"] = "[red]✘[/]"


def doctor(url: Url = None, as_json: Json = False) -> None:
    """Check this machine, the settings, the models and, with --url, a server.

    Each line that is not ✔ says how to mend it. Ends with 1 if something (✘) stops serving.
    """
    from sdxl_bento.cli.drawer import server_url

    with reporting(as_json):
        address = server_url(url)
        with stderr().status("Looking"):
            found = list(examine(address))
    if as_json:
        wrong = any(finding.status == "problem" for finding in found)
        emit_json({"ok": not wrong, "findings": [asdict(finding) for finding in found]})
    else:
        _print(found)
    if any(finding.status == "problem" for finding in found):
        raise typer.Exit(ExitCode.FAILED)


def examine(url: str | None) -> Iterator[Finding]:
    """All checks, one after the other."""
    from sdxl_bento.cli.doctor import configuration, machine, models, packages, server
    from sdxl_bento.cli.doctor.findings import run

    for check in (packages.python, packages.packages, packages.onnx_builds, packages.optional):
        yield from run(check)
    settings, found = configuration.settings_or_defaults()
    yield from found
    yield from run(configuration.misspelt)
    for about_settings in (
        machine.device, machine.cpu, configuration.image_store, configuration.loras,
    ):  # fmt: skip
        yield from run(about_settings, settings)
    yield from run(models.store)
    for about_models in (models.served, models.others, models.backends):
        yield from run(about_models, settings)
    yield from run(machine.port)
    if url is not None:
        yield from run(server.server, url)


def _print(found: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, emoji=False, soft_wrap=True)
    for finding in found:
        console.print(f"{_MARKS[finding.status]} {escape(f'{finding.about}: {finding.message}')}")
        if finding.mend:
            console.print(f"    [dim]→ {escape(finding.mend)}[/]")
    count = {kind: sum(each.status == kind for each in found) for kind in ("problem", "warning")}
    if count["problem"]:
        console.print(f"\n[red]Serving will fail[/]: {_counted(count)}.")
    elif count["warning"]:
        console.print(f"\nReady to serve, with {_counted(count)}.")
    else:
        console.print("\nReady to serve.")


def _counted(count: dict[str, int]) -> str:
    parts = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in count.items() if n]
    return " and ".join(parts)
