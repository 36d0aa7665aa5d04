"""The command that uploads a run's policy, with its model card, to the Hugging Face hub."""

from __future__ import annotations

import argparse

from reasonrl.cli.command import AddCommand, find_run, takes_outputs
from reasonrl.runs.folder import RunFolder, is_done
from reasonrl.util.errors import UserError

CARD = "README.md"


def share(run: RunFolder, repo: str, *, public: bool) -> str:
    """Uploads a finished run's policy and its card in one commit; returns the repository's address.

    Raises UserError without a login, or if the hub doesn't take it.

    repo: a hub id, made where there is none yet; one that is there stays as private as it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError, HTTPError

    from reasonrl.report.card import card  # numpy comes with it

    checked_card(run, repo)
    if get_token() is None:
        raise UserError(
            f"repo={repo} must be one that you may write to; you aren't logged in. Log in with "
            "hf auth login, or set HF_TOKEN."
        )
    files = [file for file in sorted(run.policy.rglob("*")) if file.is_file()]
    operations = [
        CommitOperationAdd(file.relative_to(run.policy).as_posix(), file) for file in files
    ]
    hub = HfApi()
    try:
        made = hub.create_repo(repo, private=not public, exist_ok=True)
        text = card(run, made.repo_id)  # which has the name of its owner
        operations.append(CommitOperationAdd(CARD, text.encode()))
        hub.create_commit(made.repo_id, operations, commit_message=f"Policy of {run.path.name}")
    except (HFValidationError, HTTPError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"repo={repo} must be taken by the Hugging Face hub; it wasn't: {why} Check the name, "
            "the login (hf auth whoami) and the network."
        ) from None
    return str(made)


def checked_card(run: RunFolder, repo: str) -> str:
    """The card of a run's policy.

    Raises UserError if it isn't done, there is no policy, or the hub takes no such name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from reasonrl.report.card import card

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"repo={repo} must be a name that the hub takes: {' '.join(str(error).split())}"
        ) from None
    if not is_done(run):
        raise UserError(f"run={run.path} must be done; it isn't. Give its command again.")
    text = card(run, repo)
    if not (run.policy / "config.json").exists():
        raise UserError(
            f"run={run.path} must have a policy of its own; there is none in {run.policy}. Pass "
            "the run that made it."
        )
    return text


def add_commands(add: AddCommand) -> None:
    text = "upload a run's policy to the Hugging Face hub, with a model card"
    sharing = add("share", what=text, function=_share)
    sharing.add_argument("run", metavar="RUN", help="its folder, or a part of its name")
    sharing.add_argument("repo", metavar="REPO", help="NAME, or TEAM/NAME")
    sharing.add_argument("--public", action="store_true", help="private, unless given")
    sharing.add_argument("--dry-run", action="store_true", help="only show the card")
    takes_outputs(sharing)


def _share(given: argparse.Namespace) -> int:
    run = find_run(given.outputs, given.run)
    if given.dry_run:
        print(checked_card(run, given.repo), end="")
    else:
        print(share(run, given.repo, public=given.public))
    return 0
