"""The weights of an ordinary network out of a compressed directory, with torch and safetensors alone.

The text of this file is printed in the README of every compressed directory, so it imports nothing of flatwing.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def plain_state(folder: str) -> dict[str, Any]:
    """A state dict of dense matrices under the names of the original network."""
    text = json.loads((Path(folder) / "flatwing.json").read_text(encoding="utf-8"))
    state = {
        key: value for file in sorted(Path(folder).glob("*.safetensors")) for key, value in load_file(file).items()
    }
    for key, own in text.get("tensors", {}).items():  # kept as int8, one scale per row
        values, scale = state.pop(key + ".int8"), state.pop(key + ".scale")
        state[key] = (values.float() * scale[..., None]).to(getattr(torch, own["dtype"]))
    for name, layer in text["layers"].items():
        matrix = dense(layer["config"], name + ".", state)
        state[name + ".weight"] = matrix.mT.contiguous() if layer["transposed"] else matrix
    return state


def dense(config: dict[str, Any], prefix: str, state: dict[str, Any]) -> Any:
    """The matrix (outputs, inputs) of one layer; its parameters are taken out of the state."""
    if config["kind"] == "sum":
        terms = config["terms"]
        return sum(dense(term, f"{prefix}terms.{i}.", state) for i, term in enumerate(terms))
    if config["kind"] == "blast":  # blocks U_a diag(D_ab) V_b
        left, coupling, right = (state.pop(prefix + part).double() for part in ("left", "coupling", "right"))
        blocks = torch.einsum("aik,abk,bkj->aibj", left, coupling, right)
        return blocks.flatten(2).flatten(0, 1).to(torch.float32)
    product = torch.eye(1)
    for i, pattern in enumerate(re.findall(r"\((\d+),(\d+),(\d+),(\d+)\)", config["chain"])):
        a, b, c, d = map(int, pattern)  # factor i is I_a (x) blocks of b x c (x) I_d
        values = state.pop(f"{prefix}factors.{i}").double().reshape(a, d, b, c)
        factor = torch.einsum("adbc,ae,df->abdecf", values, torch.eye(a).double(), torch.eye(d).double())
        factor = factor.reshape(a * b * d, a * c * d)
        product = product @ factor if i else factor
    rows, columns = state.pop(prefix + "perm_out", None), state.pop(prefix + "perm_in", None)
    product = product if rows is None else product[rows.argsort()]
    return (product if columns is None else product[:, columns.argsort()]).to(torch.float32)
