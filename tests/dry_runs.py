"""What ``laprox doctor`` says to several command lines, for the price of one import of SGLang.

    python tests/dry_runs.py REPORTS      # a JSON list of [report, folder, flags]

Each is tried in a process of its own, in ``folder``, as doctor does it; findings go to the file ``report``.
"""

import json
import os
import sys

# Imported once: it takes most of the time.
import sglang.srt.server_args  # noqa: F401

from laprox_tools.doctor import dry_run

if __name__ == "__main__":
    for report, folder, flags in json.loads(sys.argv[1]):
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            sys.path.insert(0, folder)
            dry_run.main(report, *flags)
            os._exit(0)
        os.waitpid(child, 0)
