"""Full-size checkpoint files in the published forms, filled with the weights that the expected outputs belong to."""

import gzip
import json
from pathlib import Path

import torch

from tests.parity.weights import value

HERE = Path(__file__).parent


def keys(name: str) -> dict:
    return json.loads((HERE / f"keys_{name}.json").read_text())


def gfnet_keys(backbone: str) -> dict:
    """A GFNet's file: `model_name`, `patch_size`, `num_steps`, and the shapes of its sections."""
    if backbone == "resnet50":
        shapes = keys("gfnet_resnet50") | {"model_name": "resnet50", "patch_size": 96, "num_steps": 5}
        return shapes | {"network": shapes["model_state_dict"]}
    return json.loads(gzip.decompress((HERE / "keys_gfnet_others.json.gz").read_bytes()))[backbone]


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


def write_gfnet(path: Path, backbone: str = "resnet50") -> None:
    form = gfnet_keys(backbone)
    sections = {name: filled(name, form["network"]) for name in ("model_prime_state_dict", "model_state_dict")}
    sections |= {name: filled(name, form[name]) for name in ("fc", "policy")}
    facts = {"model_name": form["model_name"], "patch_size": form["patch_size"]}
    torch.save({**facts, "flops": [float(k) for k in range(form["num_steps"])], **sections}, path)


def write_adafocus_v2(path: Path, glance: str) -> None:
    """`glance`: `mbv2` or `res50`, as the key list calls the glance network."""
    shapes = keys("adafocusv2_actnet")[f"adafocusv2_actnet_{glance}"]
    torch.save({"state_dict": filled("state_dict", shapes)}, path)
