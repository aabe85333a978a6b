"""Inception at full size with drawn weights: golden features of the other programs, its files, and kept mistakes."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from golden.inception import KEPT, SIZES, drawn, picture
from mezzotint.checkpoints.files import write_state
from mezzotint.errors import CheckpointError
from mezzotint.evaluation.graphdef import read_constants
from mezzotint.evaluation.inception import AVERAGE, BLOCKS, Inception, InceptionOutput, folded, layers, shapes
from mezzotint.evaluation.inception_file import GRAPH, NAMES, VARIABLE, content_hash, from_graph, read_inception
from mezzotint.evaluation.protocols import inception_protocol
from mezzotint.evaluation.resize import prepared

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "inception.json").read_text())["features"]
PROGRAMS = {"torch-fidelity": "tf1", "pytorch-fid": "pytorch-fid", "torchmetrics": "torchmetrics"}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The weights that the golden features were made with."""
    return {name: drawn(name, shape) for name, shape in shapes().items()}


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor]) -> Inception:
    return Inception(state)


@pytest.fixture(scope="module")
def seen(network: Inception) -> InceptionOutput:
    """Of the kept picture by the rules of torch-fidelity."""
    return shown(network, 299, 299)


def shown(network: Inception, height: int, width: int, protocol: str = "tf1") -> InceptionOutput:
    with torch.inference_mode():
        return network(prepared(inception_protocol(protocol), picture(height, width)[None]))


def off(found: Tensor, golden: Mapping[str, list[float]]) -> float:
    """Largest difference from the golden values, which are from all branches."""
    return float((found[0, :: found.shape[1] // KEPT] - torch.tensor(golden["kept"])).abs().max())


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_golden_features_of_the_programs(network: Inception, program: str, height: int, width: int) -> None:
    """To 1e-4, of features up to 48."""
    found, golden = shown(network, height, width, PROGRAMS[program]), GOLDEN[program]
    assert off(found.features, golden[f"{height}x{width}"]) < 1e-4
    assert float(found.features.double().mean()) == pytest.approx(golden[f"{height}x{width}"]["mean"], abs=1e-5)
    assert float(found.features.double().std()) == pytest.approx(golden[f"{height}x{width}"]["deviation"], abs=1e-5)
    if program == "torch-fidelity":
        assert off(found.logits, golden[f"{height}x{width} logits"]) < 2e-4


def test_an_average_in_the_last_block_is_caught(state: dict[str, Tensor]) -> None:
    """Torchvision's network, and the paper's: not FID's."""
    *others, (_, conv) = BLOCKS[-1].branches
    last = BLOCKS[-1]._replace(branches=(*others, (AVERAGE, conv)))
    mistaken = Inception(state, blocks=(*BLOCKS[:-1], last))
    assert off(shown(mistaken, 299, 299).features, GOLDEN["torch-fidelity"]["299x299"]) > 0.1


def test_a_count_of_the_border_is_caught(network: Inception, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = torch.nn.functional.avg_pool2d

    def counted(x: Tensor, size: int, stride: int, *, padding: int, count_include_pad: bool) -> Tensor:
        assert not count_include_pad
        return pool(x, size, stride, padding=padding)

    monkeypatch.setattr(torch.nn.functional, "avg_pool2d", counted)
    assert off(shown(network, 299, 299).features, GOLDEN["torch-fidelity"]["299x299"]) > 0.1


def test_the_wrong_protocol_is_caught(network: Inception) -> None:
    assert off(shown(network, 341, 512, "pytorch-fid").features, GOLDEN["torch-fidelity"]["341x512"]) > 0.1


def test_a_picture_does_not_depend_on_its_neighbours(network: Inception, seen: InceptionOutput) -> None:
    rule = inception_protocol("tf1")
    pair = torch.cat([prepared(rule, picture(299, 299)[None]), prepared(rule, picture(299, 299, seed=3)[None])])
    with torch.inference_mode():
        found = network(pair)
    torch.testing.assert_close(found.features[:1], seen.features)
    assert float((found.features[1] - found.features[0]).abs().max()) > 0.1


def test_bfloat16_is_near(state: dict[str, Tensor], seen: InceptionOutput) -> None:
    """Within 2 % of the features' deviation on average (0.5 % measured): rounding, not another function."""
    found = shown(Inception(state, torch.bfloat16), 299, 299).features
    assert found.dtype == torch.float32
    assert float((found - seen.features).abs().mean() / seen.features.std()) < 0.02


def test_spatial_features_are_rows_columns_and_seven_channels(network: Inception, seen: InceptionOutput) -> None:
    """sFID's: the first branch of mixed_6, in the order of the graph."""
    caught: list[Tensor] = []
    handle = network.convs["Mixed_6d/branch1x1"].register_forward_hook(lambda _m, _i, out: caught.append(out.relu()))
    shown(network, 299, 299)
    handle.remove()
    assert seen.spatial.shape == (1, 2023)
    torch.testing.assert_close(seen.spatial.view(17, 17, 7)[4, 9], caught[0][0, :7, 4, 9])


def test_a_folded_layer_is_the_layer_and_its_norm(generator: torch.Generator) -> None:
    conv = torch.nn.Conv2d(3, 5, (1, 7), bias=False).double()
    norm = torch.nn.BatchNorm2d(5, eps=0.001).double().eval()
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    whole = {f"a.conv.{k}": v for k, v in conv.state_dict().items()} | {
        f"a.bn.{k}": v for k, v in norm.state_dict().items()
    }
    weight, bias = folded(whole, "a.conv", "a.bn")
    x = torch.randn(2, 3, 4, 9, generator=generator).double()
    torch.testing.assert_close(
        torch.nn.functional.conv2d(x, weight.double(), bias.double()), norm(conv(x)), rtol=1e-6, atol=1e-6
    )


def test_the_table_has_the_network_of_2015() -> None:
    """94 convolutions, and 1008 rows of the classifier."""
    found = shapes()
    assert len(list(layers())) == 94
    assert sum(torch.Size(shape).numel() for name, shape in found.items() if ".bn." not in name) == 23_815_520
    assert found["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def constant(tensor: bytes) -> bytes:
    """A node with this TensorProto."""
    value = field(5, field(1, b"value") + field(2, field(8, tensor)))
    return field(1, field(1, b"a") + field(2, b"Const") + value)


def node(name: str, value: Tensor, *, in_list: bool = False) -> bytes:
    """A constant as TensorFlow writes it: as bytes, or as a list of floats."""
    shape = b"".join(field(2, field(1, size)) for size in value.shape)
    data = value.contiguous().numpy().astype("<f4").tobytes()
    tensor = field(1, 1) + field(2, shape) + field(5 if in_list else 4, data)
    attributes = field(5, field(1, b"dtype") + field(2, field(6, 1))) + field(
        5, field(1, b"value") + field(2, field(8, tensor))
    )
    return field(1, field(1, name.encode()) + field(2, b"Const") + attributes)


def graph(state: Mapping[str, Tensor]) -> bytes:
    """A frozen graph in TensorFlow's names and shapes."""
    norms = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    nodes = [field(1, field(1, b"input") + field(2, b"Placeholder")), node("softmax/weights", state["fc.weight"].T)]
    for layer in layers():
        nodes.append(node(f"{layer.graph}/conv2d_params", state[f"{layer.name}.conv.weight"].permute(2, 3, 1, 0)))
        for ours, theirs in norms.items():
            nodes.append(node(f"{layer.graph}/batchnorm/{theirs}", state[f"{layer.name}.bn.{ours}"], in_list=True))
    return b"".join(nodes)


def test_every_public_layout_gives_the_same_tensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    pth, pb = tmp_path / NAMES[0], tmp_path / GRAPH
    torch.save({**state, "fc.bias": torch.zeros(1008)}, pth)
    pb.write_bytes(graph(state))
    write_state(tmp_path / "inception.safetensors", state)
    read = [read_inception(path) for path in (pth, pb, tmp_path / "inception.safetensors")]
    assert {weights.sha256 for weights in read} == {content_hash(state)}
    assert not any(weights.is_known for weights in read)  # drawn, not those of 2015
    assert all(torch.equal(read[1].state[name], tensor) for name, tensor in state.items())


def test_kernels_are_turned_not_just_reshaped(state: dict[str, Tensor]) -> None:
    name = "Conv2d_2a_3x3.conv.weight"
    turned = from_graph({"conv_1/conv2d_params": state[name].permute(2, 3, 1, 0)})
    assert torch.equal(turned[name], state[name])
    assert not torch.equal(turned[name], state[name].permute(2, 3, 1, 0).reshape(32, 32, 3, 3))


def test_without_weights_the_error_says_which_file_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        read_inception()
    said = str(caught.value)
    assert said.count("\n") == 2
    assert all(word in said for word in (NAMES[0], VARIABLE, "mseitzer/pytorch-fid", str(tmp_path / "hub/checkpoints")))


def test_a_name_that_was_given_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone.pth"))
    with pytest.raises(CheckpointError, match=r"MEZZOTINT_INCEPTION=.*gone\.pth: no such file"):
        read_inception()


def test_the_hub_folder_is_looked_in(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / NAMES[1]).write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match="a web page"):
        read_inception()


def test_another_network_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "torchvision.safetensors"
    write_state(file, {**state, "fc.weight": torch.zeros(1000, 2048)})
    with pytest.raises(CheckpointError, match=r"(?s)not the Inception of FID.*fc.weight: shape \(1000, 2048\)"):
        read_inception(file)


def test_a_program_is_refused_without_being_run(tmp_path: Path) -> None:
    script = tmp_path / "inception-2015-12-05.pt"
    with zipfile.ZipFile(script, "w") as archive:  # what torch.jit.save writes
        for name in ("data.pkl", "code/__torch__/torch_utils.py", "data/0"):
            archive.writestr(f"inception-2015-12-05/{name}", b"")
    (tmp_path / "inception.pkl").write_bytes(b"\x80\x04.")
    for path in (script, tmp_path / "inception.pkl"):
        with pytest.raises(CheckpointError, match=r"(?s)is a program .* get pt_inception-2015-12-05-6726825d.pth"):
            read_inception(path)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x0a\xff\xff\xff\xff\x0f", "where 0 are left"),
        (b"\x0b", "a field of kind 3"),
        (b"\xff" * 12, "more than ten bytes"),
        (constant(field(1, 1) + field(2, field(2, field(1, 9)))), "0 bytes"),
    ],
)  # fmt: skip
def test_a_damaged_graph_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    file = tmp_path / GRAPH
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"not a TensorFlow graph, or is damaged .*{why}"):
        read_constants(file)


def test_a_constant_with_one_value_is_filled(tmp_path: Path) -> None:
    file = tmp_path / GRAPH
    tensor = field(1, 1) + field(2, field(2, field(1, 3))) + field(5, b"\x00\x00\x80\x3f")
    file.write_bytes(constant(tensor))
    assert torch.equal(read_constants(file)["a"], torch.ones(3))
