"""Full-size checkpoint files in the published forms, filled with the weights that the expected outputs belong to."""

import json
from pathlib import Path

import torch

from tests.parity.weights import value

HERE = Path(__file__).parent


def keys(name: str) -> dict:
    return json.loads((HERE / f"keys_{name}.json").read_text())


def filled(section: str, shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value(f"{section}.{key}", shape)) for key, shape in shapes.items()}


def write_adafocus(path: Path) -> None:
    shapes = keys("adafocus_actnet")
    sections = {name: filled(name, shapes[name]) for name in ("glancer", "focuser", "fc")}
    policy = filled("focuser.policy.policy", shapes["policy"])
    sections["focuser"] |= {f"policy.policy_old.{key}": tensor for key, tensor in policy.items()}
    whole = {}
    for prefix, name in (("glancer", "glancer"), ("focuser", "focuser"), ("classifier", "fc")):
        whole |= {f"{prefix}.{key}": tensor for key, tensor in sections[name].items()}
    torch.save(
        {
            "epoch": 11,
            "model_state_dict": whole,
            **sections,
            "policy": policy,
            "acc": torch.tensor(74.9),
            "best_acc": torch.tensor([75.0]),
            "scaler": {"scale": 65536.0},
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.0, "params": [0, 1]}]},
        },
        path,
    )


def write_adafocus_tsm(path: Path) -> None:
    shapes = keys("adafocus_sthsth")
    sections = {name: filled(name, shapes[name]) for name in ("glancer", "focuser", "fc", "policy")}
    torch.save({"epoch": 50, **sections, "acc": torch.tensor(47.0), "best_acc": torch.tensor(47.0)}, path)


def write_gfnet(path: Path) -> None:
    shapes = keys("gfnet_resnet50")
    names = ("model_prime_state_dict", "model_state_dict", "fc", "policy")
    sections = {name: filled(name, shapes[name]) for name in names}
    torch.save({"model_name": "resnet50", "patch_size": 96, "flops": [1.0, 2.0, 3.0, 4.0, 5.0], **sections}, path)
