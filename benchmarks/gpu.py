"""Everything worth measuring on a GPU: runs scripts/gpu.sh, which prints each table below its commands. Needs the
datasets shakespeare_char, hongloumeng, cppcode and pycode (see the config files), and over an hour for all tables.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.report import parser
from benchmarks.runs import ROOT

SCRIPT = ROOT / "scripts/gpu.sh"


def gpu_tables(argv: list[str]) -> int:
    names = re.findall(r'^table "(.+)" &&$', SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    made = parser("gpu", __doc__)
    made.add_argument("--only", nargs="+", choices=names, default=names, help="some of: " + ", ".join(names))
    made.add_argument("--peer", type=Path, help="a checkout of nanoGPT to compare with")
    args = made.parse_args(argv)
    bash = shutil.which("bash")
    if bash is None:
        raise ValueError("scripts/gpu.sh needs bash, which is not installed: run its commands one by one")
    environment = {"PYTHON": sys.executable, "PEER": str(args.peer or ""), "JSON": "1" * args.json}
    return subprocess.run([bash, str(SCRIPT), *args.only], env=os.environ | environment, check=False).returncode
