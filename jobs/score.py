"""`crackbatch score` as a Ray job: `ray job submit --working-dir . -- python jobs/score.py SOURCE… --out OUT`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from crackbatch.cli.commands import main

if __name__ == "__main__":
    sys.argv[1:1] = ["score"]
    main()
