import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from lwm.core import mesh as mesh_module
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, axis_size, constrain, make_mesh, require_divisible, sharding, spec


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("dp=1,fsdp=-1,tp=1,sp=1", (1, -1, 1, 1)),
        ("1,-1,1,1", (1, -1, 1, 1)),
        (" 2, 1 ,2,-1", (2, 1, 2, -1)),
        ("sp=4,tp=2", (1, -1, 2, 4)),
        ("sp=-1", (1, 1, 1, -1)),
        ("tp=2,dp=-1", (-1, 1, 2, 1)),
    ],
)
def test_both_spellings_are_read(text: str, sizes: tuple[int, ...]) -> None:
    assert MeshShape.parse(text).sizes == sizes


def test_what_is_printed_is_read_back() -> None:
    shape = MeshShape(2, -1, 3, 4)
    assert str(shape) == "dp=2,fsdp=-1,tp=3,sp=4"
    assert MeshShape.parse(str(shape)) == shape


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,2,3", "dp,fsdp,tp,sp"),
        ("1,1,1,1,1", "dp,fsdp,tp,sp"),
        ("", "dp,fsdp,tp,sp"),
        ("pp=2", "pp=2"),
        ("tp=2,tp=4", "tp=4"),
        ("tp=2,4", "'4'"),
        ("tp=two", "'two'"),
        ("1,1,x,1", "'x'"),
        ("tp=", "tp"),
        ("tp=0", "tp=0"),
        ("tp=-2", "tp=-2"),
        ("-1,-1,1,1", "dp=-1,fsdp=-1"),
    ],
)
def test_a_bad_mesh_is_refused_by_name(text: str, names: str) -> None:
    with pytest.raises(UserError) as refusal:
        MeshShape.parse(text)
    assert names in str(refusal.value)


def test_the_remaining_devices_are_filled_in() -> None:
    assert MeshShape(1, -1, 2, 2).resolve(8).sizes == (1, 2, 2, 2)
    assert MeshShape(1, 1, 1, 8).resolve(8).sizes == (1, 1, 1, 8)


@pytest.mark.parametrize("sizes", [(1, -1, 3, 1), (1, 1, 1, 4), (16, -1, 1, 1), (2, 2, 2, 2)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="8 devices"):
        MeshShape(*sizes).resolve(8)


def test_devices_fill_the_mesh_in_their_own_order() -> None:
    mesh = make_mesh(MeshShape(1, 2, 2, -1))
    assert mesh.axis_names == mesh_module.AXES
    assert [device.id for device in mesh.devices.ravel()] == [device.id for device in jax.devices()]
    assert mesh.devices.shape == (1, 2, 2, 2)


def test_a_mesh_of_fewer_devices() -> None:
    assert make_mesh(MeshShape(1, 1, 1, 2), jax.devices()[:2]).size == 2


def test_logical_names_become_mesh_axes() -> None:
    assert spec("batch", "tokens", "heads", None) == PartitionSpec(("dp", "fsdp"), ("sp",), ("tp",), None)
    assert spec("layers", "embed", "ffn") == PartitionSpec(None, ("fsdp", "sp"), ("tp",))
    assert spec() == PartitionSpec()


@pytest.mark.parametrize("logical", [("heads", "ffn"), ("batch", "embed"), ("tokens", "embed"), ("batch", "batch")])
def test_two_axes_on_one_mesh_axis_collide(logical: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="collide"):
        spec(*logical)


def test_an_unknown_logical_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown .*'head'"):
        spec("batch", "head")


def test_every_rule_names_axes_of_the_mesh() -> None:
    named = {axis for axes in mesh_module.LOGICAL_AXES.values() for axis in axes}
    assert named == set(mesh_module.AXES)


def test_axis_size_is_that_of_the_mesh_in_force() -> None:
    assert axis_size("batch") == 1
    with jax.set_mesh(make_mesh(MeshShape(2, 2, 1, 2))):
        assert axis_size("batch") == 4
        assert axis_size("embed") == 4
        assert axis_size("heads") == 1
        assert axis_size("layers") == 1


def test_constrain_pins_a_sharding_under_a_mesh_only() -> None:
    array = jnp.zeros((4, 8))
    assert constrain(array, "batch", "tokens") is array
    mesh = make_mesh(MeshShape(1, 2, 1, 4))
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: constrain(x, "batch", "tokens"))(array)
    assert placed.sharding.is_equivalent_to(sharding(mesh, "batch", "tokens"), 2)
    assert placed.addressable_shards[0].data.shape == (2, 2)


def test_a_size_the_mesh_cannot_split_is_refused() -> None:
    require_divisible("sequence length", 7, "tokens")
    with jax.set_mesh(make_mesh(MeshShape(1, 2, 1, 4))):
        require_divisible("sequence length", 8, "tokens")
        with pytest.raises(UserError, match=r"sequence length 10 is not divisible by 4, the mesh's sp"):
            require_divisible("sequence length", 10, "tokens")
        with pytest.raises(UserError, match=r"batch size 3 .* by 2, the mesh's dp x fsdp"):
            require_divisible("batch size", 3, "batch")
