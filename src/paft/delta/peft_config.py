"""adapter_config.json of a PEFT LoRA folder: what cannot be a delta of the base, and the scaling of each module."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft.files.jsonfile import read_object

REFUSED = {
    "use_qalora": "its factors belong to a grouped input",
    "use_bdlora": "its factors are block-diagonal",
    "target_parameters": "its factors belong to stacked experts, not to linear layers",
    "layer_replication": "the trained model has layers that the base has not",
    "alora_invocation_tokens": "it acts after certain tokens only, so no weights are the trained model",
    "arrow_config": "it routes each token, so no weights are the trained model",
    "kasa_config": "it cuts small singular values from the base's weights",
    "monteclora_config": "its factors are drawn at random",
}
"""Settings under which no delta of the base's tensors, or none that is read here, is the trained model."""
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that rewrite the base weights the factors belong to."""
MOST = 2**31
"""No layer has as many inputs, so no rank is as large."""
NUMBERS = "a rank is a whole number of at least 1, an alpha a finite number"
TOKEN_IDS = "these are the ids of the tokens whose rows were trained, each once"


@dataclass(frozen=True)
class PeftConfig:
    """The settings of one adapter folder."""

    folder: Path
    settings: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "PeftConfig":
        """Raises `ValueError` naming the folder for what is no LoRA, or one that no delta stands for."""
        path = folder / "adapter_config.json"
        if not path.is_file():
            raise ValueError(f"{folder} is not a PEFT adapter folder: it holds no adapter_config.json")
        settings = read_object(path)
        if settings.get("peft_type") != "LORA":
            raise ValueError(
                f"{path} has peft_type={settings.get('peft_type')!r:.60}; only LORA adapters can be merged"
            )
        for name, reason in REFUSED.items():
            if settings.get(name):
                raise ValueError(
                    f"{path} has {name}={settings[name]!r:.60}: {reason}; such an adapter cannot be merged here"
                )
        start = settings.get("init_lora_weights")
        if str(start).lower().startswith(MOVES_BASE):
            raise ValueError(
                f"{path} has init_lora_weights={start!r:.60}: the factors belong to base weights that were rewritten "
                "before training. Save it as a plain LoRA, with save_pretrained's "
                "path_initial_model_for_weight_conversion"
            )
        return cls(folder, settings)

    @property
    def transposed(self) -> bool:
        """Whether the adapter says that its layers store [in, out]."""
        return bool(self.settings.get("fan_in_fan_out"))

    def token_indices(self, module: str) -> tuple[int, ...]:
        """The rows of a module's weight that were trained alone. Raises `ValueError` for what is no list of them."""
        given = self.settings.get("trainable_token_indices")
        if isinstance(given, dict):
            given = next((rows for name, rows in given.items() if f".{module}".endswith(f".{name}")), None)
        rows = tuple(given) if isinstance(given, list) else ()
        whole = all(isinstance(row, int) and not isinstance(row, bool) and row >= 0 for row in rows)
        if not rows or not whole or len({*rows}) < len(rows):
            raise self._wrong(module, f"trainable_token_indices {given!r:.60}", TOKEN_IDS)
        return rows

    def rank(self, module: str) -> int:
        """Raises `ValueError` for what is no rank."""
        rank = self._by_pattern("rank_pattern", module, self.settings.get("r"))
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank < MOST:
            raise self._wrong(module, f"rank {rank!r:.60}")
        return rank

    def scaling(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank). Raises `ValueError` for what is no alpha."""
        rank = self.rank(module)
        alpha = self._by_pattern("alpha_pattern", module, self.settings.get("lora_alpha"))
        if not isinstance(alpha, int | float) or not abs(alpha) < 1e38:
            raise self._wrong(module, f"rank {rank} and lora_alpha {alpha!r:.60}")
        return float(alpha / math.sqrt(rank) if self.settings.get("use_rslora") else alpha / rank)

    def _wrong(self, module: str, values: str, right: str = NUMBERS) -> ValueError:
        return ValueError(
            f"{self.folder}/adapter_config.json gives {module:.100} {values}; {right}. Correct the file or save the "
            "adapter again"
        )

    def _by_pattern(self, setting: str, module: str, default: Any) -> Any:
        """The value of the first key that is a module's name or its end; keys are regular expressions, as in peft."""
        patterns = self.settings.get(setting) or {}
        try:
            matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
            return next(matching, default)
        except (AttributeError, re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{self.folder}/adapter_config.json has {setting}={patterns!r:.100}; it must map regular expressions "
                f"for module names to numbers ({error})"
            ) from error
