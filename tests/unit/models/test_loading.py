"""Teachers as they are published: which load, and the errors for missing, damaged or unsuitable files."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from damaged import DAMAGED, SPY, STEM, TEXT, edit, refused, rewrite
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from families import TINY, make_student
from helpers import PROMPTS, tiny_pipeline
from transformers import T5EncoderModel

from rmd.common.errors import RMDError
from rmd.core.plan import Stage
from rmd.models import load_backbone
from rmd.models.registry import load_pipeline, wrap
from rmd.models.student import load_student
from rmd.worlds.assets import TEACHERS, teacher_folder

families = pytest.mark.parametrize("family", sorted(TINY))


def test_a_tokenizer_stored_as_sentencepiece_alone_loads(teacher: Callable[[str], Path]) -> None:
    folder = teacher("pixart") / "tokenizer"
    shutil.rmtree(folder)
    folder.mkdir()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 10), model_writer=model, vocab_size=29, model_type="unigram", pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 32, "extra_ids": 0, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    backbone = load_backbone(folder.parent)
    ids = backbone.pipe.tokenizer("a small red ball").input_ids
    assert ids == [*sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode("a small red ball"), 1]


MISSING = [
    ("sdxl", "unet", STEM, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"),
    ("sdxl", "vae", STEM, "decoder.conv_in.weight"),
    ("sdxl", "text_encoder_2", TEXT, "text_projection.weight"),
    ("pixart", "transformer", STEM, "pos_embed.proj.bias"),
    ("pixart", "text_encoder", TEXT, "encoder.final_layer_norm.weight"),
    ("pixart", "text_encoder", TEXT, "shared.weight"),
    ("wan", "text_encoder", TEXT, "shared.weight"),
    ("wan", "vae", STEM, "decoder.conv_in.weight"),
]


@pytest.mark.parametrize(("family", "part", "file", "name"), MISSING)
def test_a_missing_weight_is_named(
    family: str, part: str, file: str, name: str, teacher: Callable[[str], Path]
) -> None:
    folder = teacher(family)
    rewrite(folder / part / file, lambda tensors: tensors.pop(name))
    first = "encoder.embed_tokens.weight and 1 more" if name == "shared.weight" else name
    refused(folder, rf"^{folder / part} lacks the weight {first}, which its config\.json asks for: download it again$")
    with pytest.raises(RMDError, match="lacks the weight"):  # whatever the options
        load_pipeline(folder, dtype=torch.bfloat16)


def test_a_missing_weight_of_sharded_files_is_named(teacher: Callable[[str], Path]) -> None:
    folder = teacher("sdxl")
    pipe = tiny_pipeline(two_encoders=True)
    for part, network in (("unet", pipe.unet), ("text_encoder_2", pipe.text_encoder_2)):
        shutil.rmtree(folder / part)
        network.save_pretrained(folder / part, max_shard_size="20KB")
        index = next((folder / part).glob("*.index.json"))
        whole = json.loads(index.read_text())
        name = next(name for name in whole["weight_map"] if "to_q" in name or "q_proj.weight" in name)
        place = folder / part / whole["weight_map"].pop(name)
        text = index.read_text()
        load_backbone(folder)  # nothing is missing yet
        rewrite(place, lambda tensors, name=name: tensors.pop(name))  # type: ignore[misc]  # its own name
        index.write_text(json.dumps(whole))
        refused(folder, rf"{part} lacks the weight {name}, which")
        place.unlink()
        refused(folder, rf"index\.json names {place.name}, and there is no such file beside it")
        index.write_text(text.replace(place.name, "../../elsewhere.safetensors"))
        refused(folder, r"index\.json names '\.\./\.\./elsewhere\.safetensors', which is not a file beside it")
        shutil.rmtree(folder / part)
        network.save_pretrained(folder / part)


@pytest.mark.parametrize(
    ("part", "file", "name"), [("unet", STEM, "conv_in.weight"), ("text_encoder_2", TEXT, "text_projection.weight")]
)
def test_a_weight_of_another_shape_and_a_superfluous_one_are_named(
    part: str, file: str, name: str, teacher: Callable[[str], Path]
) -> None:
    folder = teacher("sdxl")
    good = (folder / part / file).read_bytes()
    rewrite(folder / part / file, lambda tensors: tensors.update({name: torch.zeros(3, 3)}))
    refused(folder, rf"{part} holds the weight {name} in the shape \(3, 3\), where its config\.json asks for \(\d")
    (folder / part / file).write_bytes(good)
    rewrite(folder / part / file, lambda tensors: tensors.update({"encoder.more.weight": torch.zeros(3)}))
    refused(
        folder, rf"{part} holds the weight encoder\.more\.weight, which the network of its config\.json does not have"
    )


def test_tables_and_names_of_older_files_are_accepted(teacher: Callable[[str], Path]) -> None:
    pixart, sdxl, wan = (teacher(family) for family in ("pixart", "sdxl", "wan"))
    for folder in (pixart, wan):  # tied embeddings under either name, or both
        path, rename = folder / "text_encoder" / TEXT, ("shared.weight", "encoder.embed_tokens.weight")
        rewrite(path, lambda t, r=rename: t.update({r[1]: t.pop(r[0])}))  # type: ignore[misc]  # its own names
        load_backbone(folder)
        rewrite(path, lambda t, r=rename: t.update({r[0]: t[r[1]].clone()}))  # type: ignore[misc]
        load_backbone(folder)
        rewrite(path, lambda t: t.update({"decoder.final_layer_norm.weight": torch.ones(2)}))  # the whole T5
    rewrite(pixart / "transformer" / STEM, lambda t: t.update({"pos_embed.pos_embed": torch.zeros(1, 2, 2)}))
    load_backbone(pixart)
    load_backbone(wan)
    positions = {"text_model.embeddings.position_ids": torch.arange(20)[None], "logit_scale": torch.zeros(())}
    for part in ("text_encoder", "text_encoder_2"):
        rewrite(sdxl / part / TEXT, lambda t: t.update(positions))
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4)
    vae.save_pretrained(sdxl / "vae")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".attentions.0.to_" in name]:
            new = next(part for part in names if f".{part}." in name)
            tensors[name.replace(f".{new}.", f".{names[new]}.")] = tensors.pop(name)

    rewrite(sdxl / "vae" / STEM, old)
    loaded = load_backbone(sdxl).pipe.vae
    for name, tensor in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_no_option_lets_code_run(teacher: Callable[[str], Path]) -> None:
    folder = teacher("sdxl")
    (folder / "pipeline.py").write_text(SPY)
    for option in ({"trust_remote_code": True}, {"custom_pipeline": str(folder)}):
        with pytest.raises(RMDError, match="is not accepted: RMD runs no code that comes with weights"):
            load_pipeline(folder, **option)
    edit(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "pipeline.X"})
    refused(folder, r"text_encoder/config\.json asks for code of its own \(auto_map\)")
    assert not list(folder.rglob("ran"))


OTHER = [
    ("sdxl", "unet", {"in_channels": 9}, r"this UNet has 9 input channels: it is an inpainting model"),
    ("sdxl", "unet", {"in_channels": 8}, r"this UNet has 8 input channels: it is an InstructPix2Pix model"),
    ("sdxl", "unet", {"in_channels": 6}, r"this UNet has 6 input channels and the latents of its VAE have 4"),
    ("sdxl", "unet", {"out_channels": 8}, r"this UNet has 4 input channels and 8 output channels"),
    ("sdxl", "unet", {"projection_class_embeddings_input_dim": 56}, r"this UNet is SDXL's refiner"),
    ("sdxl", "unet", {"projection_class_embeddings_input_dim": 80}, r"this UNet expects 80 values of pooled text"),
    ("sdxl", "unet", {"time_cond_proj_dim": 32}, r"this UNet takes the guidance scale as an input \(time_cond"),
    ("sdxl", "unet", {"addition_embed_type": "text"}, r"this UNet does not take the pooled text and the picture's si"),
    ("sdxl", "unet", {"in_channels": "four"}, r"the configuration's in_channels must be an integer, got 'four'"),
    ("pixart", "transformer", {"in_channels": 8}, r"this transformer has 8 input channels and the latents of its VAE"),
    ("pixart", "transformer", {"out_channels": 12}, r"this transformer has 4 input channels and 12 output channels"),
    ("sd3", "transformer", {"in_channels": 33}, r"this transformer has 33 input channels: it is an inpainting model"),
    ("wan", "transformer", {"in_channels": 36}, r"this transformer has 36 input channels: it is an image-to-video mod"),
    ("wan", "transformer", {"image_dim": 8}, r"this transformer is given a first picture \(image_dim"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "part", "changes", "sentence"), OTHER)
def test_a_network_of_another_kind_is_refused_before_its_weights_are_read(
    family: str, part: str, changes: dict[str, Any], sentence: str, teacher: Callable[[str], Path]
) -> None:
    folder = teacher(family)
    edit(folder / part / "config.json", **changes)
    refused(folder, rf"^{folder}: {sentence}")


def test_a_network_of_another_kind_is_refused_in_a_loaded_pipeline() -> None:
    pipe = tiny_pipeline()
    pipe.unet = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9})
    with pytest.raises(RMDError, match=r"^this pipeline: this UNet has 9 input channels: it is an inpainting model"):
        wrap(pipe)
    pipe.unet = torch.nn.Linear(2, 2)
    with pytest.raises(RMDError, match=r"^this pipeline: the unet is of the class Linear, and sdxl works with UNet2DC"):
        wrap(pipe)


def test_parts_of_other_classes_are_refused_by_name(teacher: Callable[[str], Path]) -> None:
    wan = teacher("wan")
    edit(wan / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    refused(wan, r"the vae is of the class AutoencoderTiny, and wan works with AutoencoderKLWan: give a pipeline with")


@pytest.mark.parametrize("name", ["WanVACEPipeline", "WanImageToVideoPipeline", "StableDiffusionXLImg2ImgPipeline"])
def test_pipelines_that_are_given_more_than_a_prompt_are_refused(name: str, teacher: Callable[[str], Path]) -> None:
    folder = teacher("pixart")
    edit(folder / "model_index.json", _class_name=name)
    refused(
        folder, rf"^no backbone is registered for {name}: .*; it is given more than a prompt, and RMD distils text-to"
    )


def test_a_damaged_adapter_gives_the_same_error(tmp_path: Path) -> None:
    folder = make_student(tmp_path, "sdxl", "lora")
    path = folder / "pytorch_lora_weights.safetensors"
    whole = path.read_bytes()
    for content, sentence in DAMAGED.values():
        path.write_bytes(whole[:-100] if content is None else content)
        with pytest.raises(RMDError, match=rf"^{path} {sentence}"):
            load_student(folder)


def test_two_experts_are_refused_before_their_weights_are_read(teacher: Callable[[str], Path]) -> None:
    wan = teacher("wan")
    shutil.copytree(wan / "transformer", wan / "transformer_2")
    (wan / "transformer" / STEM).unlink()
    edit(wan / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"], boundary_ratio=0.9)
    refused(wan, r"this is a Wan2\.2 pipeline with two experts")


@pytest.mark.parametrize("family", ["sdxl", "pixart", "sd3"])
def test_a_tiny_vae_decodes_and_encodes_as_in_the_official_pipeline(
    family: str, teacher: Callable[[str], Path]
) -> None:
    folder = teacher(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny = AutoencoderTiny(
            encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), scaling_factor=0.5,
        )  # fmt: skip
    shutil.rmtree(folder / "vae")
    tiny.save_pretrained(folder / "vae")
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    backbone = load_backbone(folder)
    x = torch.randn(backbone.latent_shape(2, 16, 16), generator=torch.Generator().manual_seed(0))
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(backbone.decode(x), tiny.decode(x / 0.5).sample)
        assert torch.equal(backbone.encode_images(pictures), tiny.encode(pictures).latents * 0.5)


@families
def test_parts_may_be_in_different_precisions(family: str) -> None:
    for low, high in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        backbone = TINY[family]()
        backbone.pipe.to(dtype=low)
        backbone.denoiser.to(high)
        backbone.pipe.vae.to(low)
        x = torch.randn(backbone.latent_shape(2, 32, 32), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            kwargs = backbone.stage_cond(backbone.encode(PROMPTS[:2]), Stage(1, 32, 32), Stage(1, 32, 32))
            x0, _ = backbone.predict(backbone.denoiser, x, 500.0, kwargs)
            assert bool(backbone.decode(x0).isfinite().all())


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_packaged_teachers_sample_with_plain_diffusers_without_a_dtype(name: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(teacher_folder(name))
    pipe.set_progress_bar_config(disable=True)
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.dtype for part in parts} == {torch.float32}
    length = {"num_frames": 5} if name == "scenes-wan" else {}
    images = pipe("a red ball on sand", height=32, width=32, num_inference_steps=1, output_type="pt", **length)[0]
    assert bool(torch.as_tensor(images[0]).isfinite().all())


def test_a_source_may_begin_with_the_home_folder(
    teacher: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = teacher("pixart")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert isinstance(load_pipeline("~/pixart").text_encoder, T5EncoderModel)


@pytest.mark.parametrize(
    ("length", "sentence"),
    [
        (10**9, r"the tokenizer_2 gives up to 1e\+09 tokens \(model_max_length\), but its text encoder reads 20"),
        (21, "the tokenizer_2 gives up to 21 tokens"),
        ({"a": 1}, r"model_max_length of the tokenizer_2 should be a positive number, but is \{'a': 1\}"),
        (0, "model_max_length of the tokenizer_2 should be a positive number, but is 0"),
    ],
)
def test_a_tokenizer_that_gives_more_tokens_than_its_encoder_reads_is_refused(
    length: object, sentence: str, teacher: Callable[[str], Path]
) -> None:
    folder = teacher("sdxl")
    edit(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=length)
    refused(folder, sentence)


def test_a_tokenizer_without_a_config_is_refused(teacher: Callable[[str], Path]) -> None:
    folder = teacher("sdxl")
    (folder / "tokenizer_2" / "tokenizer_config.json").unlink()
    refused(folder, r"the tokenizer_2 gives up to 1e\+30 tokens")


def test_special_tokens_of_a_text_encoder_must_be_numbers(teacher: Callable[[str], Path]) -> None:
    folder = teacher("sdxl")
    edit(folder / "text_encoder_2" / "config.json", eos_token_id=[])
    refused(folder, r"eos_token_id of the text encoder that goes with the tokenizer_2 must be an integer, got \[\]")
