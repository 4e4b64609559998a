"""A plugin of fieldmark: the object that its entry point names."""

from fieldmark.models import Family
from fieldmark.pictures.inputs import InputSpec
from fieldmark.plugins import Plugin
from fieldmark_example.light import uneven_light
from fieldmark_example.metric import quadratic_kappa
from fieldmark_example.network import tiny_mixer
from fieldmark_example.reader import labels_csv

plugin = Plugin(
    networks={
        "tiny_mixer": Family(tiny_mixer, InputSpec(size=64), examples=(("tiny_mixer", 10),)),
    },
    augmentations={"uneven_light": uneven_light},
    readers={"labels_csv": labels_csv},
    metrics={"quadratic_kappa": quadratic_kappa},
)
