"""What cannot be had from the Hugging Face hub, in one sentence; importing this module loads nothing of the hub's."""

from paft.files.diskfull import is_full

LOGIN = "`hf auth login` tells this machine who you are"


def unavailable(what: str, repo: str, error: Exception, otherwise: str) -> ValueError:
    """The error to raise for `what` of a repository: why it cannot be had, and `otherwise` what to do instead.

    An error of a full disk is given back by raising it.
    """
    if is_full(error):
        raise error
    return ValueError(f"{what} cannot be had from the Hugging Face hub: {_why(repo, error)}; {otherwise}")


def _why(repo: str, error: Exception) -> str:
    """By the name of the error: importing the libraries' own takes seconds, and both have one of each kind."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if "GatedRepoError" in names or "gated" in text:
        return f"its owner must grant access, asked for at huggingface.co/{repo}, and {LOGIN}"
    if "RevisionNotFoundError" in names:
        return "the repository has no such commit"
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return f"there is no such repository, or it is private and {LOGIN}"
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError"}:
        return (
            "it is not in the cache of this machine, and the hub cannot be reached or is not asked (offline)"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".rstrip(": ")
