"""torchvision's networks, as every scoring process builds them."""

import subprocess
import sys


def test_building_a_network_does_not_import_torchs_compiler_which_works_afterwards():
    code = (
        "import sys\n"
        "from crackbatch.models.model import load_model\n"
        "load_model()\n"
        "assert 'torch._inductor' not in sys.modules, 'the compiler was imported'\n"
        "import torch, torchvision\n"
        "boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])\n"
        "print(torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).sum().item())\n"
        "import torchvision.ops.roi_align as roi_align\n"
        "real = __import__('torch._dynamo.utils', fromlist=['utils'])\n"
        "print(real.__file__.endswith('utils.py'))\n"
        "module = sys.modules['torchvision.ops.roi_align']\n"
        "print(module.is_compile_supported('cpu') == real.is_compile_supported('cpu'))\n"
    )

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)

    assert shown.stdout.split() == ["4.0", "True", "True"], shown.stderr
