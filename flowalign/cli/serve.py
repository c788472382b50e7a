"""`flowalign serve`: rewards for other environments and machines."""

from __future__ import annotations

import argparse

from flowalign.cli.options import Parser, count, known_name, option
from flowalign.cli.score import chosen_rewards
from flowalign.cli.train import add_allow_code
from flowalign.config.load import config_from_mapping, environment_value, find_config, read_text
from flowalign.config.rewards import RewardConfig, is_set
from flowalign.config.yaml12 import parse
from flowalign.errors import ConfigError

HELP = "serve rewards over HTTP, for training in another environment"
EXAMPLE = """\
examples:
  flowalign serve clip                             # http://127.0.0.1:8700, this machine only
  flowalign serve --config rewards.yaml            # everything under `rewards`, with its settings
  flowalign serve my_rewards.py:Sharpness --allow-code my_rewards.py
  flowalign serve clip --host 10.0.0.7 --token-env REWARD_TOKEN   # others need the token

The other side, in a config:
  rewards: [{name: remote, url: "http://127.0.0.1:8700", label: clip}]
"""
PORT = 8700


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign serve`."""
    parser.add_argument(
        "rewards",
        nargs="*",
        metavar="REWARD",
        help="names of `flowalign list rewards` or file.py:Name; with --config, labels in it",
    )
    option(parser, "--config", metavar="FILE", help="YAML with `rewards`, for example of a run")
    option(parser, "--host", default="127.0.0.1", metavar="NAME", help="default 127.0.0.1")
    option(parser, "--port", type=_port, default=PORT, metavar="N", help="default 8700; 0: any")
    option(parser, "--token-env", metavar="NAME", help="variable with the token that clients need")
    option(parser, "--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:N")
    option(
        parser,
        "--batch-size",
        type=count,
        metavar="N",
        help="samples of one call of the reward; default: all of a request",
    )
    option(parser, "--max-megabytes", type=count, default=1000, metavar="N", help="default 1000")
    option(
        parser,
        "--timeout",
        type=count,
        default=600,
        metavar="S",
        help="seconds that the reward may take for a call; default 600",
    )
    add_allow_code(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal asks to stop."""
    rewards = wanted_rewards(args)
    sets = [reward.label or reward.name for reward in rewards if is_set(reward)]
    if sets:
        what = f"{', '.join(sets)} score whole sets, and a server scores samples"
        raise ConfigError("CFG-SET-REWARD", "flowalign serve", what, "name the other rewards only")
    # The server's packages and the address are checked before a model is loaded.
    from flowalign.server.run import address_of, listening_socket, serve, token_of

    token = token_of(args.token_env, args.host)
    listening = listening_socket(args.host, args.port)
    from flowalign.http.addresses import is_loopback
    from flowalign.scoring import build_suite
    from flowalign.server.app import Settings
    from flowalign.server.card import Limits

    suite = build_suite(rewards, allow_code=args.allow_code, device=args.device)
    settings = Settings(
        token=token,
        local_only=is_loopback(args.host),
        limits=Limits(bytes=args.max_megabytes * 1_000_000),
        batch_size=args.batch_size,
        timeout_s=args.timeout,
    )
    access = "no token" if token is None else f"token from {args.token_env}"
    print(f"serving {', '.join(suite.names)} at {address_of(listening)} ({access})", flush=True)
    serve(suite.entries, settings, listening)
    return 0


def wanted_rewards(
    args: argparse.Namespace, where: str = "flowalign serve"
) -> tuple[RewardConfig, ...]:
    """The sections of the rewards that `args.rewards` names, maybe in `args.config`."""
    if args.config is None:
        if not args.rewards:
            what = "names no reward"
            raise ConfigError("CLI-USAGE", where, what, f"see `{where} --help`")
        return chosen_rewards(",".join(args.rewards), args.allow_code)
    file = find_config(args.config)
    document = parse(read_text(file, args.config), source=args.config, expand=environment_value)
    # A file with rewards alone is enough: the other keys of a run do not matter here.
    whole = {"output": "unused", "algorithm": "nft", **document.value}
    config = config_from_mapping(whole, source=args.config, allow_code=args.allow_code)
    found = {r.label or r.name: r for r in (*config.rewards, *config.held_out_rewards)}
    for label in args.rewards:
        known_name(label, list(found), where, "reward")
    return tuple(found[label] for label in args.rewards or found)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, got {text!r}")
    return int(text)
