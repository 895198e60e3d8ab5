"""What AUTOMATIC1111's clients send without asking for anything.

Its clients send long bodies in which most fields hold their defaults. A field of a feature that
this server does not have is accepted if its value does not ask for the feature, and refused by its
name otherwise. The names are those of AUTOMATIC1111 1.10, of its forks, and of older versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdxl_bento.errors import InvalidInput

# The API page's own example has this text in every field of text.
PLACEHOLDER = "string"
# Fields of features that this server does not have → the values that do not ask for the feature.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "enable_hr": (False,),
    "script_name": ("", "None", PLACEHOLDER),
    "script_args": ([],),
    "styles": ([], [PLACEHOLDER], [""]),
    "subseed_strength": (0,),
    "seed_enable_extras": (True, False),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "restore_faces": (False,),
    "tiling": (False,),
    "s_churn": (0,),
    "s_min_uncond": (0,),
    "s_tmin": (0,),
    "s_noise": (1,),
    "disable_extra_networks": (False,),
    "firstpass_image": ("", PLACEHOLDER),
    "infotext": ("", PLACEHOLDER),
    "mask": ("",),
    "latent_mask": ("",),
    "resize_mode": (0, 1),
    "initial_noise_multiplier": (1,),
    "clip_skip": (0, 1, 2),
    "enable_refiner": (False,),
    "distilled_cfg_scale": (3.5,),
}
# What the API page's example has in fields of the features above, as it has `true` and 0 wherever
# the schema has no default. In a copy of that example they are left out.
EXAMPLE: Mapping[str, object] = {
    "restore_faces": True,
    "tiling": True,
    "s_noise": 0,
    "initial_noise_multiplier": 0,
    "mask": PLACEHOLDER,
    "latent_mask": PLACEHOLDER,
}
# Fields whose placeholder nobody writes by intention.
_MARKS = ("firstpass_image", "script_name", "infotext", "hr_upscaler", "sampler_name", "mask")
# Fields about the files of AUTOMATIC1111's interface, or details of the features above, which have
# no effect without them. Without a refiner, noise or a mask, neither have their details.
IGNORED = frozenset(
    (
        # high resolution
        *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y"),
        *("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt"),
        *("hr_negative_prompt", "hr_cfg", "hr_distilled_cfg", "hr_additional_modules"),
        *("firstphase_width", "firstphase_height", "hr_force", "hr_denoising_strength"),
        # masks
        *("mask_blur", "mask_blur_x", "mask_blur_y", "mask_round", "inpainting_fill"),
        *("inpainting_mask_invert", "inpaint_full_res", "inpaint_full_res_padding"),
        # files, and what the interface keeps
        *("save_images", "do_not_save_samples", "do_not_save_grid", "include_init_images"),
        *("comments", "force_task_id", "override_settings_restore_afterwards"),
        # details of noise, of samplers, and of models that edit by an instruction
        *("eta", "s_tmax", "subseed", "image_cfg_scale"),
    )
)
# The same of the settings that a call may override: the values that change nothing here.
NEUTRAL_SETTINGS: Mapping[str, tuple[object, ...]] = {
    "sd_vae": ("Automatic", "automatic", "None", ""),
    "sd_unet": ("Automatic", "None", ""),
    "sd_lora": ("None", ""),
    "sd_hypernetwork": ("None", ""),
    # The last layer but one is what SDXL reads of its encoders, in AUTOMATIC1111 as well.
    "CLIP_stop_at_last_layers": (0, 1, 2),
    "sdxl_clip_l_skip": (False,),
    "filter_nsfw": (False,),
    "eta_noise_seed_delta": (0,),
    "initial_noise_multiplier": (1,),
    "s_churn": (0,),
    "s_min_uncond": (0,),
    "s_tmin": (0,),
    "s_noise": (1,),
    "eta_ddim": (0,),
    "eta_ancestral": (1,),
    "token_merging_ratio": (0,),
    "token_merging_ratio_hr": (0,),
    "token_merging_ratio_img2img": (0,),
    "sdxl_crop_left": (0,),
    "sdxl_crop_top": (0,),
    "sdxl_refiner_low_aesthetic_score": (2.5,),
    "sdxl_refiner_high_aesthetic_score": (6,),
    "img2img_color_correction": (False,),
    "img2img_fix_steps": (False,),
    "always_discard_next_to_last_sigma": (False,),
    "webp_lossless": (False,),
    "enable_pnginfo": (True,),
    "emphasis": ("Original", "None", "No norm"),
    "tiling": (False,),
}
# Settings about files, hardware and the interface, which pictures do not depend on.
IGNORED_SETTINGS = frozenset(
    (
        *("samples_save", "grid_save", "save_images_add_number", "samples_filename_pattern"),
        *("return_grid", "return_mask", "return_mask_composite", "do_not_show_images"),
        *("save_init_img", "outdir_samples", "outdir_txt2img_samples", "outdir_img2img_samples"),
        *("live_previews_enable", "show_progress_every_n_steps", "show_progress_type"),
        *("sd_vae_as_default", "sd_vae_checkpoint_cache", "sd_checkpoint_cache"),
        *("sd_checkpoints_limit", "sd_checkpoints_keep_in_cpu", "sd_checkpoint_hash"),
        *("cross_attention_optimization", "upcast_attn", "randn_source", "face_restoration_model"),
        *("code_former_weight", "forge_inference_memory", "forge_unet_storage_dtype"),
    )
)


def without_example(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without what it has only because it is a copy of the API page's example."""
    if not any(body.get(name) == PLACEHOLDER for name in _MARKS):
        return dict(body)
    return {
        name: value
        for name, value in body.items()
        if name not in EXAMPLE
        or value != EXAMPLE[name]
        or isinstance(value, bool) != isinstance(EXAMPLE[name], bool)
    }


def is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    """Whether a value is one of those that ask for nothing. A number is no truth value."""
    return value is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )


def check_neutral(field: str, value: object, neutral: tuple[object, ...]) -> None:
    """Raises InvalidInput, which names the field, unless the value asks for nothing."""
    if not is_neutral(value, neutral):
        only = " or ".join(map(repr, neutral))
        raise InvalidInput(field, value, f"{only}; it is not supported")


def check_scripts(scripts: Any) -> None:
    """Check that no script of `alwayson_scripts` is asked to do anything.

    Clients list scripts, such as ADetailer or ControlNet, that they have turned off.

    Raises InvalidInput, which names the script.
    """
    if scripts is None:
        return
    if not isinstance(scripts, Mapping):
        raise InvalidInput("alwayson_scripts", scripts, "an object; scripts are not supported")
    for name, script in scripts.items():
        arguments = script.get("args", []) if isinstance(script, Mapping) else script
        if not _is_off(arguments):
            allowed = "no arguments, or `enabled` false; scripts are not supported"
            raise InvalidInput(f"alwayson_scripts.{name}", arguments, allowed)


def _is_off(arguments: object) -> bool:
    """Whether a script's arguments are none, begin with false, or are units that are all off."""
    if isinstance(arguments, Mapping):
        return not arguments or arguments.get("enabled") is False
    if not isinstance(arguments, list):
        return False
    return (
        not arguments
        or arguments[0] is False
        or all(isinstance(unit, Mapping) and _is_off(unit) for unit in arguments)
    )
