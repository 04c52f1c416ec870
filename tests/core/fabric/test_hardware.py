"""Device kinds, link kinds, and which link each level of a topology stands for."""

import pytest

from pipelinejob.fabric.hardware import Hardware, HardwareError, default, parse
from pipelinejob.spec.job import Device, Precision
from pipelinejob_operator.process import settings


@pytest.mark.parametrize(
    ("product", "kind"),
    [  # as NVIDIA's GPU feature discovery and AMD's node labeller write them
        ("Tesla-V100-SXM2-16GB", "V100-SXM2"),
        ("Tesla-V100-SXM2-32GB", "V100-SXM2-32GB"),
        ("Tesla-V100-PCIE-16GB", "V100-PCIe"),
        ("Tesla-T4", "T4"),
        ("NVIDIA-A10", "A10"),
        ("NVIDIA-A10G", "A10G"),
        ("NVIDIA-A30", "A30"),
        ("NVIDIA-A40", "A40"),
        ("A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA-A100-80GB-PCIe", "A100-PCIe-80GB"),
        ("NVIDIA-A100-SXM4-40GB", "A100-SXM-40GB"),
        ("NVIDIA-A100-SXM4-80GB", "A100-SXM-80GB"),
        ("NVIDIA-A100-SXM4-80GB-SHARED", "A100-SXM-80GB"),
        ("NVIDIA-L4", "L4"),
        ("NVIDIA-L40", "L40"),
        ("NVIDIA-L40S", "L40S"),
        ("NVIDIA-GeForce-RTX-4090", "RTX-4090"),
        ("NVIDIA-H100-80GB-HBM3", "H100-SXM"),
        ("NVIDIA-H100-PCIe", "H100-PCIe"),
        ("NVIDIA-H100-NVL", "H100-NVL"),
        ("NVIDIA-H200", "H200"),
        ("NVIDIA-H200-NVL", "H200-NVL"),
        ("NVIDIA-GH200-480GB", "GH200"),
        ("NVIDIA-B200", "B200"),
        ("NVIDIA-GB200", "GB200"),
        ("NVIDIA-B300-SXM6-AC", "B300"),
        ("NVIDIA-GB300", "GB300"),
        ("AMD_Instinct_MI250X", "MI250X"),
        ("AMD_Instinct_MI300X_OAM", "MI300X"),
    ],
)
def test_products_are_known_by_their_node_label(product, kind):
    assert default().device_of(product).name == kind


@pytest.mark.parametrize(
    "product",
    [
        "Tesla-K80",
        "NVIDIA-RTX-A4000",  # no A40
        "NVIDIA-RTX-A1000",  # no A100
        "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb",  # a seventh of one
        "",
    ],
)
def test_what_is_not_known_whole_is_not_guessed(product):
    assert default().device_of(product) is None


def test_every_product_is_that_of_one_kind():
    kinds = default().devices.values()

    found = {product: default().device_of(product) for kind in kinds for product in kind.products}

    assert found == {product: kind for kind in kinds for product in kind.products}


def test_gpus_that_are_not_known_are_reckoned_as_an_h100_whose_memory_is_no_bound():
    unknown = default().reckoned_as(Device.GPU, "Tesla-K80")

    assert (unknown.name, unknown.memory_bytes) == ("H100-SXM", None)
    assert default().reckoned_as(Device.GPU, "H100-SXM").memory_bytes == 80_000_000_000  # a kind's name will do
    assert default().reckoned_as(Device.CPU, "NVIDIA-H100-80GB-HBM3").name == "cpu-core"


def test_data_sheets_are_kept_in_si_units():
    a100 = default().devices["A100-SXM-80GB"]

    assert a100.flops == {Precision.BF16: 312e12, Precision.FP32: 19.5e12}
    assert a100.attained_flops(Precision.BF16) == 0.64 * 312e12
    assert (a100.memory_bytes, a100.memory_bytes_per_s) == (80_000_000_000, 2.039e12)
    assert default().link_of(a100).bytes_per_s == 0.8 * 300e9
    assert default().network_of(a100).seconds(23.75e9) == 1 + 10e-6


def test_the_nearest_common_domain_says_which_link_joins_two_ranks():
    levels, h100 = ("zone", "leaf", "nvlink", "node"), default().devices["H100-SXM"]

    links = [default().link_between(levels, depth, h100).name for depth in range(5)]

    assert links == ["between-zones", "infiniband-ndr", "infiniband-ndr", "nvlink4", "nvlink4"]


def test_a_topology_of_racks_alone_is_joined_by_the_devices_own_network():
    t4 = default().devices["T4"]

    assert [default().link_between(("rack",), depth, t4).name for depth in range(3)] == [
        "ethernet-25",
        "ethernet-25",
        "pcie3",
    ]


def test_providers_are_joined_by_what_regions_are():
    names = [default().link_between(("region", "zone"), depth).name for depth in range(2)]

    assert names == ["wan", "between-zones"]


OWN = """
[devices.Gaudi3]
products = ["HL-325L"]
flops = { bf16 = 1678e12, fp32 = 14.3e12 }
attained = 0.45
memory_bytes = 128e9
memory_bytes_per_s = 3.7e12
link = "roce-own"
network = "roce-200"

[devices.T4]
products = ["T4"]
flops = { bf16 = 8e12, fp32 = 8e12 }
attained = 0.9
memory_bytes_per_s = 0.3e12
link = "pcie3"
network = "ethernet-10"

[links.roce-own]
latency_s = 5e-6
peak_bytes_per_s = 525e9

[levels]
leaf = "roce-400"
"""


def test_a_users_file_adds_kinds_replaces_kinds_and_names_levels():
    extended = default().extended(parse(OWN))

    assert extended.device_of("HL-325L").name == "Gaudi3"
    assert extended.link_of(extended.devices["Gaudi3"]).bytes_per_s == 525e9  # attained unless said otherwise
    assert extended.device_of("Tesla-T4").attained == 0.9
    assert extended.device_of("Tesla-T4").memory_bytes is None
    assert extended.link_between(("leaf",), 1).name == "roce-400"
    assert extended.device_of("NVIDIA-L4") == default().device_of("NVIDIA-L4")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[devices", "is no TOML"),
        ("[links.x]\nlatency_s = 1e-6", "links.x.peak_bytes_per_s: Field required"),
        (
            "[links.x]\nlatency_s = 1e-6\npeak_bytes_per_s = 0",
            "links.x.peak_bytes_per_s: Input should be greater than 0",
        ),
        ("[link.x]\nlatency_s = 1e-6", "link: Extra inputs are not permitted"),
        (OWN.replace("bf16 =", "bf17 ="), "devices.Gaudi3.flops.bf17"),
        (OWN.replace("fp32 = 14.3e12", "fp32 = 0.0"), "devices.Gaudi3.flops.fp32: Input should be greater than 0"),
        (OWN.replace("bf16 = 8e12, ", ""), "devices.T4.flops: Value error, bf16 is missing"),
        (OWN.replace("0.45", "45"), "devices.Gaudi3.attained: Input should be less than or equal to 1"),
    ],
)
def test_what_cannot_be_used_is_named(text, says):
    with pytest.raises(HardwareError, match=says.replace(".", r"\.")):
        parse(text)


def test_a_link_kind_that_nobody_describes_is_named():
    with pytest.raises(
        HardwareError, match=r"devices\.Gaudi3: no link kind is called roce-own; name one of between-zones"
    ):
        default().extended(Hardware(devices=parse(OWN).devices))


def test_the_operator_reads_a_clusters_own_file(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(OWN)

    for flags, environment in (([f"--hardware={file}"], {}), ([], {"PIPELINEJOB_OPERATOR_HARDWARE": str(file)})):
        assert settings.read(flags, environment).hardware.device_of("HL-325L").name == "Gaudi3"
    assert settings.read([], {}).hardware == default()


def test_a_file_that_the_operator_cannot_use_ends_it_with_a_sentence(tmp_path, capsys):
    file = tmp_path / "own.toml"
    file.write_text("[levels]\nrack = 'carrier-pigeon'")

    with pytest.raises(SystemExit) as ended:
        settings.read([f"--hardware={file}"], {})

    assert ended.value.code == 2
    assert f"{file}: levels.rack: no link kind is called carrier-pigeon; name one of" in capsys.readouterr().err
