"""Laws under fire: whatever fails and whenever, every request has one end, and nobody keeps anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from long_tests import fewer

from simulator.cluster.result import COMPLETED
from simulator.validation.fault_laws import broken_laws
from simulator.validation.fault_plans import Case, draw_case, run_case


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return draw_case(lambda options: draw(st.sampled_from(options)))


def any_plan(count: int) -> settings:
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@any_plan(120)
@given(cases())
def test_every_request_has_one_end_and_nobody_keeps_anything(case: Case) -> None:
    assert broken_laws(run_case(case)) == []


@any_plan(15)
@given(cases())
def test_the_same_seed_gives_the_same_run(case: Case) -> None:
    one, other = run_case(case), run_case(case)
    assert one.desk.last_token_s.tobytes() == other.desk.last_token_s.tobytes()
    assert one.state.tobytes() == other.state.tobytes() and one.reasons == other.reasons


@any_plan(15)
@given(cases())
def test_faults_that_never_come_change_nothing(case: Case) -> None:
    pool = "prefill" if "2p2d" in case["name"] else "colocated"
    events = [{"kind": "crash", "at_s": 1e8, "worker": f"{pool}-0"}]
    never: dict[str, Any] = {"events": events, "retry": {"limit": 0}}  # what fails without faults fails
    one, other = (run_case({**case, "faults": faults, "client": {}, "autoscaling": {}}) for faults in (never, {}))
    assert one.faults is not None and other.faults is None
    assert (one.state == COMPLETED).sum() == (other.state == COMPLETED).sum()
    np.testing.assert_array_equal(one.desk.last_token_s, other.desk.last_token_s)
    np.testing.assert_array_equal(one.desk.first_token_s, other.desk.first_token_s)


@pytest.mark.slow
@any_plan(fewer(1500))
@given(cases())
def test_hundreds_of_plans(case: Case) -> None:
    assert broken_laws(run_case(case)) == []
