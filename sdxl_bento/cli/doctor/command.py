"""`sdxl-bento doctor`: what is wrong, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module

import typer

from sdxl_bento.cli.doctor.findings import Finding, problem, warning
from sdxl_bento.cli.failures import ExitCode
from sdxl_bento.cli.options import Json, Url
from sdxl_bento.cli.terminal import emit_json, reporting, stderr

_MARKS = {"good": "[green]✔[/]", "note": "[blue]·[/]", "warning": "[yellow]![/]"}
_MARKS["problem"] = "[red]✘[/]"


def doctor(url: Url = None, as_json: Json = False) -> None:
    """Check this machine, the settings, the models and, with --url, a server.

    Each line that is not ✔ says how to mend it. Ends with 1 if something (✘) stops serving.
    """
    with reporting(as_json), stderr().status("Looking"):
        findings = list(examine(url))
    wrong = any(finding.status == "problem" for finding in findings)
    if as_json:
        emit_json({"ok": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if wrong:
        raise typer.Exit(ExitCode.FAILED)


def examine(url_option: str | None) -> Iterator[Finding]:
    """Run all checks, one after the other.

    Each check is imported just before it runs, so that a missing package fails only the checks that
    need it.

    Raises:
        Failure: the address of the server is not valid.
    """
    for name in ("python", "packages", "onnx_builds", "optional"):
        yield from _check("packages", name)
    try:
        from sdxl_bento.cli.connect import server_url
        from sdxl_bento.cli.doctor.configuration import settings_or_defaults
    except ImportError as error:
        yield problem("settings", f"they cannot be read: {error}", "install what is missing")
        return
    url = server_url(url_option)
    settings, findings = settings_or_defaults()
    yield from findings
    yield from _check("configuration", "misspelt")
    for module, name in (
        ("machine", "device"),
        ("machine", "cpu"),
        ("configuration", "image_store"),
        ("configuration", "loras"),
        ("models", "store"),
        ("models", "served"),
        ("models", "others"),
        ("models", "backends"),
        ("machine", "port"),
    ):
        yield from _check(module, name, settings)
    if url is not None:
        yield from _check("server", "server", url)


def _check(module: str, name: str, *arguments: object) -> Iterator[Finding]:
    """The findings of one check, or a warning that it could not be run."""
    try:
        check = getattr(import_module(f"sdxl_bento.cli.doctor.{module}"), name)
        yield from check(*arguments)
    except ImportError as error:
        yield warning(name, f"not looked at: {error}", "install what is missing")
    except Exception as error:
        text = f"this check itself failed: {type(error).__name__}: {error}"
        yield warning(name.replace("_", " "), text)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, emoji=False, soft_wrap=True)
    for finding in findings:
        console.print(f"{_MARKS[finding.status]} {escape(f'{finding.about}: {finding.message}')}")
        if finding.mend:
            console.print(f"    [dim]→ {escape(finding.mend)}[/]")
    count = {kind: sum(each.status == kind for each in findings) for kind in ("problem", "warning")}
    if count["problem"]:
        console.print(f"\n[red]Serving will fail[/]: {_counted(count)}.")
    elif count["warning"]:
        console.print(f"\nReady to serve, with {_counted(count)}.")
    else:
        console.print("\nReady to serve.")


def _counted(count: dict[str, int]) -> str:
    parts = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in count.items() if n]
    return " and ".join(parts)
