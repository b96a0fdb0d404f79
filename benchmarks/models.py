"""Which backbones work: every classifier of torchvision, families of timm and of Hugging Face, each
with random weights, really stepped once, on images as small as it takes.

python benchmarks/models.py                    what is not in models.json yet
python benchmarks/models.py --minutes 2        the same, for two minutes at most; call it again
python benchmarks/models.py swin hf:           those whose names hold these words, in this order
python benchmarks/models.py --again swin hf:   the same, anew
python benchmarks/models.py --show             models.md from what there is

Of each net: the head that is found, what the branch covers, how attacks run, and whether all of
this holds: branch off and branch at its start are the plain net, but for rounding; the natural
term, as published, reaches head and branch only; an attack stays in the threat, raises the loss
and leaves no trace; a training step moves head, feature extractor and branch; the branch is the
net with summed weights; dropping it changes nothing; saved and opened again by its name, the
logits are the same.
"refused" is a sentence that the library says before training, "not run" that torch can't train the
net either, or that untrained it explodes; "WRONG" is anything else. timm and transformers are
extras; what isn't installed isn't measured."""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from _examined import CLASSES, examined, images
from _harness import HERE
from _hugging_face import FAMILIES, folder_of
from torch.nn import functional as F

from autolora.core.machine import import_torchvision
from autolora.models.backbones import open_backbone
from autolora.models.collections import torchvision_names

RESULTS = HERE / "models.json"
PAGE = HERE / "models.md"
EXTRAS = ("timm", "transformers")
COLUMNS = [
    "net",
    "million parameters",
    "pixels",
    "head",
    "weights with a branch, share of the feature extractor",
    "logits differ at the start by",
    "attacks run on",
    "result",
]
TIMM = """
bat_resnext26ts beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny
coatnet_pico_rw_224 convformer_s18 convit_tiny convmixer_1024_20_ks9_p14 convnext_atto
convnextv2_atto crossvit_tiny_240 cs3darknet_s cspresnet50 davit_tiny deit_tiny_patch16_224
densenet121 dla46_c dm_nfnet_f0 dpn48b eca_nfnet_l0 edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientnet_b0 efficientnet_lite0 efficientvit_b0 efficientvit_m0
ese_vovnet19b_slim eva02_tiny_patch14_224 fastvit_t8 fbnetc_100 focalnet_tiny_srf gcresnet33ts
gcvit_xxtiny gernet_s ghostnet_050 gmlp_s16_224 halonet26t hardcorenas_a hgnetv2_b0
hiera_tiny_224 hrnet_w18_small inception_next_atto inception_v3 lambda_resnet26t lcnet_050
legacy_seresnet18 levit_128s mambaout_femto maxvit_pico_rw_256 mixer_s32_224 mixnet_s
mnasnet_small mobilenetv1_100 mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small_035
mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small nf_regnet_b0
nf_resnet26 pit_ti_224 poolformer_s12 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002
repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224 resnest14d resnet10t
resnet18 resnetblur50 resnetv2_50 resnetv2_50x1_bit resnext50_32x4d rexnet_100 selecsls42b
semnasnet_075 sequencer2d_s shvit_s1 skresnet18 spnasnet_100 starnet_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 test_vit
tf_efficientnet_b0 tf_efficientnet_lite0 tiny_vit_5m_224 tinynet_e tnt_s_patch16_224 tresnet_m
twins_svt_small vgg11_bn visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224
volo_d1_224 wide_resnet50_2 xception41 xcit_nano_12_p16_224
""".split()


def names():
    "The names of all that is examined, as `load_backbone` takes them."
    import_torchvision()
    timm = [f"timm:{name}" for name in TIMM] if installed("timm") else []
    hf = [f"hf:{name}" for name in FAMILIES] if installed("transformers") else []
    return [*torchvision_names(), *timm, *hf]


def installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def look(name):
    "What there is to tell of the net `name`."
    if not name.startswith("hf:"):
        return examined(name)
    with tempfile.TemporaryDirectory(prefix="autolora-hf-") as folder:
        try:
            path = folder_of(name.removeprefix("hf:"), Path(folder))
        except Exception as error:
            return {"result": f"not built: {type(error).__name__}: {error}"}
        return examined(f"hf:{path}")


def plain_steps(name):
    "Three training steps of the net `name` by torch alone."
    net = open_backbone(name, CLASSES, 3, weights=None).model.net
    x, y = images(net)
    net.train()
    for _ in range(3):
        (F.cross_entropy(net(x), y) + F.cross_entropy(net(x.flip(3)), y)).backward()
    return {"result": "WRONG: it ended the process"}  # which torch alone doesn't


def in_a_child(call, name):
    "What `call(name)` gives in a process of its own; None if that dies."
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(call, name).result()
        except BrokenProcessPool:
            return None


def apart(name):
    "`look` in a child, which takes its memory along, and perhaps dies of the net."
    found = in_a_child(look, name)
    if found is None and not name.startswith("hf:"):
        found = in_a_child(plain_steps, name)
        why = "torch itself ends the process in training steps of this net, without a call of ours"
        return found or {"result": f"not run: {why}"}
    return found or {"result": "WRONG: it ended the process"}


def row(name, about):
    head = f"`{about['head']}`" if "head" in about else ""
    side = about.get("side", "")
    weights = f"{about['weights']}, {about['share']} %" if "weights" in about else ""
    attacks = about.get("attacks", "").removeprefix("attacks run on ")
    size = about.get("millions", "")
    start = f"{about['difference']:.0e}".replace("0e+00", "0") if "difference" in about else ""
    cells = [name, size, side, head, weights, start, attacks, about["result"]]
    return f"| {' | '.join(map(str, cells))} |"


def count(found):
    "How many of `found` ended how."
    ends = [about["result"].partition(":")[0] for about in found.values()]
    return ", ".join(
        f"{ends.count(end)} {end}" for end in dict.fromkeys(sorted(ends, reverse=True))
    )


def page(kept):
    "models.md, from what is kept."
    versions = {package: installed(package) for package in ("torch", "torchvision", *EXTRAS)}
    written = ", ".join(f"{package} {number}" for package, number in versions.items() if number)
    words = __doc__.split("\n\n")
    lines = ["# Which backbones work", "", *words[0].split("\n"), ""]
    lines += [words[2].replace("\n", " "), ""]
    lines += [f"Written by `python benchmarks/models.py` with {written}; {count(kept)}."]
    for title, prefix in {"torchvision": "", "timm": "timm", "Hugging Face": "hf"}.items():
        own = {k: v for k, v in kept.items() if k.rpartition(":")[0] == prefix}
        if own:
            lines += ["", f"## {title}: {count(own)}", ""]
            lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
            lines += [row(name, about) for name, about in own.items()]
    PAGE.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    wanted = names()
    asked = dict.fromkeys(n for word in args.words or [""] for n in wanted if word in n)
    left = [n for n in asked if args.again or n not in kept]
    until = time.monotonic() + 60 * args.minutes
    for i, name in enumerate([] if args.show else left):
        if time.monotonic() > until:
            print(f"{len(left) - i} are left: call it again")
            break
        start = time.monotonic()
        kept[name] = apart(name)
        print(f"{time.monotonic() - start:6.1f} s  {name}: {kept[name]['result']}", flush=True)
        order = {n: place for place, n in enumerate(wanted)}
        kept = dict(sorted(kept.items(), key=lambda pair: order.get(pair[0], len(order))))
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    page(kept)
    return any(about["result"].startswith("WRONG") for about in kept.values())


if __name__ == "__main__":
    sys.exit(main())
