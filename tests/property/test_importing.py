"""An adapter's folder of whatever JSON: a record that the API takes, or words; never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tuneyard.systems.trackers.adapterfolder import folder_record
from tuneyard.systems.trackers.record import Selection
from tuneyard.systems.trackers.server import TrackerError

_KEYS = st.sampled_from(
    [
        *("r", "lora_alpha", "target_modules", "rank_pattern", "base_model_name_or_path", "log_history", "max_steps"),
        *("eval_loss", "hub_token", "num_train_epochs", "use_dora", "init_lora_weights"),
    ]
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(
    found=st.fixed_dictionaries({}, optional={k: st.dictionaries(_KEYS, _VALUES) for k in ("config", "state", "args")})
)
@example(found={"state": {"log_history": [{"": 0}]}})
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_gives_a_record_that_the_api_takes_or_words(found: dict[str, Any], tmp_path: Path) -> None:
    names = {"config": "adapter_config.json", "state": "trainer_state.json", "args": "training_args.json"}
    for key, name in names.items():
        (tmp_path / name).write_text(json.dumps(found.get(key, {})))
    try:
        record = folder_record(tmp_path, Selection(evaluations=("*",)))
    except TrackerError:
        return
    type(record.lineage).from_dict(record.lineage.to_dict())
