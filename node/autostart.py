"""How a system is told to run our node whenever its owner is there: a unit, an agent, a task.

    Linux     ~/.config/systemd/user/potluck.service      systemctl --user
    macOS     ~/Library/LaunchAgents/network.potluck.node.plist   launchctl
    Windows   a task at logon                             schtasks

It runs as its owner, with no right that the owner has not. On Linux it is held closer than that, as
BOINC's unit is (idle disk, low priority, a file system that can only be read but for its home and
the hub's cache); what needs a user namespace is left out where the kernel grants none. Those for
macOS and Windows are written after their manuals, and were never run.

Source: systemd.exec(5), launchd.plist(5), BOINC's client/scripts/boinc-client.service.in.
"""

from __future__ import annotations

import plistlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final, Literal
from xml.sax.saxutils import escape

UNIT: Final = "potluck.service"
LABEL: Final = "network.potluck.node"
TASK: Final = "Potluck node"
STOP_S: Final = 90  # sessions have 30 s to move, the rest is for a slow disk

System = Literal["systemd", "launchd", "schtasks"]

_HELD: Final = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
UMask=0077
"""
_CLOSER: Final = """\
PrivateUsers=yes
ProtectSystem=strict
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
PrivateTmp=yes
"""


@dataclass(frozen=True, slots=True)
class Service:
    """command: the program and its words. folder: where it runs, which its words' relative paths
    are of. home: the node's. writes: other folders that it writes. environment: what it is told
    besides. closed: in a user namespace of its own (Linux)."""

    command: tuple[str, ...]
    folder: Path
    home: Path
    writes: tuple[Path, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    closed: bool = True


def system_here(platform: str = sys.platform) -> System:
    """By what this machine starts things."""
    if platform == "darwin":
        return "launchd"
    return "schtasks" if platform == "win32" else "systemd"


def place_of(system: System, user_home: Path, config_home: Path) -> Path:
    """Where its file belongs. config_home: XDG_CONFIG_HOME."""
    if system == "launchd":
        return user_home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    if system == "schtasks":
        return user_home / "AppData" / "Local" / "potluck" / "potluck-task.xml"
    return config_home / "systemd" / "user" / UNIT


def written(system: System, service: Service) -> bytes:
    """The file, as the system reads it."""
    if system == "launchd":
        return _agent(service)
    return _task(service).encode("utf-16") if system == "schtasks" else _unit(service).encode()


def commands(system: System, path: PurePath, *, user: int) -> tuple[tuple[str, ...], ...]:
    """What has it run now, and from each login on. user: its number, for launchd."""
    if system == "launchd":
        return (("launchctl", "bootstrap", f"gui/{user}", str(path)),)
    if system == "schtasks":
        return (
            ("schtasks", "/Create", "/F", "/TN", TASK, "/XML", str(path)),
            ("schtasks", "/Run", "/TN", TASK),
        )
    return (
        ("systemctl", "--user", "daemon-reload"),
        ("systemctl", "--user", "enable", UNIT),
        ("systemctl", "--user", "restart", UNIT),
    )


def undoing(system: System, *, user: int) -> tuple[tuple[str, ...], ...]:
    """What ends it, and has it not come back; its file is removed behind that."""
    if system == "launchd":
        return (("launchctl", "bootout", f"gui/{user}/{LABEL}"),)
    if system == "schtasks":
        return (("schtasks", "/End", "/TN", TASK), ("schtasks", "/Delete", "/F", "/TN", TASK))
    return (("systemctl", "--user", "disable", "--now", UNIT),)


def asking(system: System, *, user: int) -> tuple[str, ...]:
    """What tells whether it runs."""
    if system == "launchd":
        return ("launchctl", "print", f"gui/{user}/{LABEL}")
    if system == "schtasks":
        return ("schtasks", "/Query", "/TN", TASK, "/V", "/FO", "LIST")
    return ("systemctl", "--user", "status", "--no-pager", UNIT)


def _unit(service: Service) -> str:
    told = [
        "[Unit]",
        "Description=Potluck node: serves blocks of language models to a swarm",
        "Documentation=https://github.com/potluck-swarm/potluck",
        "",
        "[Service]",
        "Type=exec",
        "ExecStart=" + " ".join(_quoted(word).replace("$", "$$") for word in service.command),
        f"WorkingDirectory={str(service.folder).replace('%', '%%')}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in service.environment),
        "Restart=on-failure",
        "RestartSec=15",
        "RestartPreventExitStatus=2",  # bad input: another try changes nothing
        "KillSignal=SIGINT",  # sessions move first, as at Ctrl-C
        "SuccessExitStatus=130 143",
        f"TimeoutStopSec={STOP_S}",
        "Nice=10",
        "IOSchedulingClass=idle",
        "CPUWeight=idle",
    ]
    text = "\n".join(told) + "\n" + _HELD
    if service.closed:
        text += _CLOSER + "".join(
            f"ReadWritePaths={_quoted(f'-{one}')}\n" for one in (service.home, *service.writes)
        )
    return text + "\n[Install]\nWantedBy=default.target\n"


def _quoted(word: str) -> str:
    """As one word for systemd, with no specifier in it."""
    told = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{told}"'


def _agent(service: Service) -> bytes:
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(service.command),
            "WorkingDirectory": str(service.folder),
            "EnvironmentVariables": dict(service.environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 15,
            "ExitTimeOut": STOP_S,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 10,
            "Umask": 0o077,
            "StandardErrorPath": str(service.home / "node.log"),
        }
    )


def _task(service: Service) -> str:
    program, *words = service.command
    # a task has no environment of its own
    given = "".join(f'set "{name}={value}"&& ' for name, value in service.environment)
    line = subprocess.list2cmdline([program, *words])
    return f"""\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>Potluck node</Description></RegistrationInfo>
  <Triggers><LogonTrigger><Enabled>true</Enabled></LogonTrigger></Triggers>
  <Principals><Principal id="Author">
    <LogonType>InteractiveToken</LogonType><RunLevel>LeastPrivilege</RunLevel>
  </Principal></Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>7</Priority>
    <RestartOnFailure><Interval>PT1M</Interval><Count>255</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author"><Exec>
    <Command>cmd.exe</Command>
    <Arguments>{escape(f'/d /c "{given}{line}"')}</Arguments>
    <WorkingDirectory>{escape(str(service.folder))}</WorkingDirectory>
  </Exec></Actions>
</Task>
"""


def grants_namespaces(probe: Sequence[str] = ("unshare", "--user", "true")) -> bool:
    """Whether this user may have a user namespace, which some systems refuse."""
    try:
        return subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
