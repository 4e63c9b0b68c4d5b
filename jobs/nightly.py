"""`crackbatch nightly` as a Ray job.

ray job submit --working-dir . -- python jobs/nightly.py --inbox 's3://inspections/{date}/' --out s3://results --date D
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from crackbatch.cli.commands import main

if __name__ == "__main__":
    sys.argv[1:1] = ["nightly"]
    main()
