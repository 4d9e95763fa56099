"""``rvlr data check`` and ``rvlr config``."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def data_arguments(parser: ArgumentParser) -> None:
    """The verb below ``rvlr data``."""
    verbs = parser.add_subcommands(dest="verb")
    look = "look over a collection; exit 1 if it would spoil a result"
    check = ArgumentParser(allow_abbrev=False, description=look)
    check.add_argument("file", help="annotation file, folder or index, or flickr30k, coco, vizwiz")
    check.add_argument("--image-root", type=Path | None, help="folder of the pictures, where the index says none")
    check.add_argument("--decode", action="store_true", help="decode every picture, not only its header")
    check.add_argument("--max-bad-pictures", type=int | None, help="missing or unreadable pictures allowed in a split")
    check.add_argument("--model", default="tiny", help="its context is what captions are measured by; none: leave out")
    check.add_argument("--image-column", type=str | None, help="CSV: column of the picture's path")
    check.add_argument("--caption-column", type=str | None, help="CSV: column of the caption")
    check.add_argument("--keep-flagged", action="store_true", help="use captions flagged is_rejected, is_precanned too")
    verbs.add_subcommand("check", check, help=look)


def data_run(arguments: Namespace) -> int:
    """Run it; the exit code."""
    return _check(arguments[arguments.verb])


def config_arguments(parser: ArgumentParser) -> None:
    """Presets, and settings on top of them."""
    parser.add_argument("presets", nargs="+", help="shipped presets or YAML files, later ones win: flickr30k official")
    parser.add_argument("-s", "--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
                        help="a setting such as stage1.epochs and its value; may be repeated")  # fmt: skip


def config_run(arguments: Namespace) -> int:
    """Print the settings that presets resolve to, as YAML."""
    import json

    import yaml

    from rvlr_lib.config import as_dict, load_settings

    overrides = {key: yaml.safe_load(value) for key, value in arguments.set}
    settings = as_dict(load_settings(*arguments.presets, overrides=overrides))
    print(yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False), end="")
    return 0


def _check(arguments: Namespace) -> int:
    from rvlr_lib.data.check import check

    length, context = None, 0
    if arguments.model != "none":
        from rvlr_lib.models.towers import token_counter

        length, context = token_counter(arguments.model)
    report = check(
        arguments.file,
        arguments.image_root,
        full=arguments.decode,
        max_bad_pictures=arguments.max_bad_pictures,
        token_lengths=length,
        context=context,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        keep_flagged=arguments.keep_flagged or None,
    )
    print(report)
    if not arguments.decode and not report.spoiled:
        print("headers only: --decode also finds pictures that are cut short")
    return report.status
