"""Every recipe gives a configuration that every part of it can be built from, for any data."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark import augment, models
from fieldmark.errors import ConfigError
from fieldmark.fit import callbacks, optimizers, schedules
from fieldmark.networks.small_cnn import small_cnn
from fieldmark.settings.config import FULL_SIDE, DataFacts, Facts, TrainConfig
from fieldmark.settings.recipes import COMPARED, RECIPES, choose, find
from fieldmark.settings.recipes.candidates import TINY_SIDE
from fieldmark.settings.recipes.tutorials import FOUR_NETS

LITE = "timm/tf_efficientnet_lite0"


def facts(
    side: int = 64,
    num_train: int = 1000,
    num_classes: int = 10,
    device: str = "cpu",
    pretrained: str = "",
) -> Facts:
    each = max(1, num_train // num_classes)
    data = DataFacts(
        num_classes=num_classes,
        num_train=num_train,
        smallest_class=1,
        largest_class=each,
        median_side=side,
    )
    return Facts(data=data, device=device, pretrained=pretrained)


FACTS = st.builds(
    facts,
    st.integers(1, 10_000),
    st.integers(2, 5_000_000),
    st.integers(2, 20_000),
    st.sampled_from(["cpu", "cuda", "mps"]),
    st.sampled_from(["", LITE, "timm/resnet18.a1_in1k"]),
)


@pytest.mark.parametrize("name", list(RECIPES))
@settings(max_examples=30)
@given(given_facts=FACTS)
def test_every_recipe_gives_a_whole_configuration(name: str, given_facts: Facts) -> None:
    config = RECIPES[name](given_facts)
    assert isinstance(config, TrainConfig)
    assert TrainConfig.from_json(config.to_json(), where="c") == config
    assert RECIPES[name](given_facts) == config
    models.check(config.model)
    augment.build(config.augment)
    augment.build_mix(config.mix)
    callbacks.build(config.callbacks, monitor=config.monitor)
    optimizers.build(
        config.optimizer,
        small_cnn(2, 1),
        head="head",
        weight_decay=config.weight_decay,
        backbone_lr=config.backbone_lr,
    )
    steps = -(-given_facts.data.num_train // config.batch_size)
    schedule = schedules.build(
        config.schedule,
        length=schedules.Length(steps * config.epochs, steps),
        warmup_steps=round(config.warmup_epochs * steps),
    )
    assert all(0 <= schedule(s) <= 1 for s in (0, 1, steps * config.epochs - 1))
    assert (0 if config.probe else 1) <= config.epochs <= 150
    assert config.seed == 0
    exact = config.decode_side == FULL_SIDE  # what a tutorial's code computes, and how
    assert config.precision == ("f32" if exact else "auto")
    assert (config.device, config.threads) == ("auto", 0)


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_are_described(name: str) -> None:
    text = RECIPES[name].__doc__ or ""
    assert text.splitlines()[0].endswith(".")
    assert RECIPES[name].__name__ == name.replace("-", "_")


@pytest.mark.parametrize("side", [1, 8, 12, 13, 32, 64, 96, 3000])
def test_tiny_networks_get_a_size_they_take(side: int) -> None:
    config = RECIPES["tiny"](facts(side=side))
    assert 8 <= config.size <= 64
    assert config.model.startswith("small_cnn" if side <= 12 else "cifar_resnet")
    network = models.create(config.model, num_classes=3, weights=config.weights, size=config.size)
    assert network.input.size == config.size


def test_only_objects_are_mirrored() -> None:
    tiny, objects = (RECIPES[n](facts()) for n in ("tiny", "tiny_objects"))
    assert "flip" not in tiny.augment
    assert objects.augment == tiny.augment + "|flip_lr"


def test_more_pictures_mean_fewer_epochs() -> None:
    for name in ("tiny", "tiny_objects", "finetune", "scratch"):
        epochs = [RECIPES[name](facts(num_train=n)).epochs for n in (10, 1000, 10_000, 10**6)]
        assert epochs == sorted(epochs, reverse=True)
        assert epochs[0] > epochs[-1]


def test_finetune_of_very_many_pictures_keeps_no_features() -> None:
    few, many = (RECIPES["finetune"](facts(side=300, num_train=n)) for n in (50_000, 50_001))
    assert (few.probe, few.norm_statistics, few.train_from) == (True, "frozen", "last_two_stages")
    assert (many.probe, many.norm_statistics, many.train_from) == (False, "fresh", "")
    assert RECIPES["probe"](facts(side=300, num_train=10**6)).norm_statistics == "frozen"


def test_finetune_takes_the_network_at_hand() -> None:
    assert RECIPES["finetune"](facts(pretrained="timm/resnet18.a1_in1k")).model == (
        "timm/resnet18.a1_in1k(head_stages=3)"
    )
    assert RECIPES["finetune"](facts()).model == f"{LITE}(head_stages=3)"
    given = RECIPES["finetune"](facts(pretrained="timm/resnet18(act_layer='gelu')"))
    assert given.model == "timm/resnet18(act_layer='gelu')"


def test_scratch_asks_for_no_weights() -> None:
    for device in ("cpu", "cuda"):
        config = RECIPES["scratch"](facts(device=device, num_train=30_000, pretrained=LITE))
        assert config.weights == "none"
        assert config.model == {"cpu": "timm/resnet18", "cuda": "timm/resnet50"}[device]


@pytest.mark.parametrize(
    ("given_facts", "name", "says"),
    [
        (facts(side=8), "tiny", "8 px"),
        (facts(side=TINY_SIDE), "tiny", "96 px"),
        (facts(side=TINY_SIDE + 1), "scratch", "no pretrained weights"),
        (facts(side=500), "scratch", "500 px"),
        (facts(side=500, pretrained=LITE), "probe", LITE),
        (facts(side=8, pretrained=LITE), "probe", LITE),
        (facts(side=500, num_train=2000, pretrained=LITE), "finetune", LITE),
    ],
)
def test_choice(given_facts: Facts, name: str, says: str) -> None:
    choice = choose(given_facts)
    assert choice.name == name
    assert says in choice.reason
    assert choice.name in RECIPES


def test_hyphens_and_underscores_are_the_same() -> None:
    assert find("cifar10-resnet20") == find("cifar10_resnet20") == "cifar10-resnet20"
    assert find("tiny-objects") == "tiny_objects"
    with pytest.raises(ConfigError, match="did you mean 'sneakers'"):
        find("sneaker")
    with pytest.raises(ConfigError, match="not of the form"):
        find("a b")


TUTORIALS = ("handwriting", "birds", "sneakers", "cifar10-resnet20", "cifar10-four-nets")


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_has_its_three_recipes(name: str) -> None:
    written, fixed, fast = (RECIPES[name + end](facts()) for end in ("", "_fixed", "_fast"))
    # As written: Keras's optimizers, and nothing decays outside of the loss.
    assert written.optimizer.startswith("keras_")
    assert written.weight_decay == 0
    assert fixed.optimizer == written.optimizer
    assert (fixed.last_batch, fixed.whole_batches, fixed.keep) == ("even", False, "best")
    assert fast.epochs < written.epochs
    assert fast.model.partition("(")[0] == written.model.partition("(")[0]
    # Honest: what chooses the epoch is not what is scored in the end.
    for config in (fixed, fast):
        assert float(config.split.split("/")[1]) > 0
    assert set(COMPARED) == {n for n in RECIPES if "four" in n}
    assert COMPARED["cifar10-four-nets"] == FOUR_NETS


def test_the_tutorials_numbers() -> None:
    """The settings that the texts print."""
    got = {name: RECIPES[name](facts(num_classes=4)) for name in TUTORIALS}
    assert {n: (c.epochs, c.batch_size, c.lr, c.size) for n, c in got.items()} == {
        "handwriting": (50, 64, 0.001, 80),
        "birds": (10, 8, 0.001, 224),
        "sneakers": (60, 32, 0.0001, 224),
        "cifar10-resnet20": (100, 32, 0.001, 32),
        "cifar10-four-nets": (150, 128, 0.1, 32),
    }
    assert got["birds"].model == "resnet50_unpadded(outputs=1000)"
    steps = schedules.build(got["cifar10-resnet20"].schedule, length=schedules.Length(200, 1))
    assert [round(1e-3 * steps(e), 10) for e in (0, 80, 81, 120, 121, 160, 161, 180, 181)] == [
        *(1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 5e-7),
    ]
    decay = schedules.build(got["sneakers"].schedule, length=schedules.Length(960, 16))
    assert [decay(s) for s in (0, 49, 50, 149)] == pytest.approx([1, 1, 0.98, 0.98**2])
