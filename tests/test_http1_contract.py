"""The lean client under the tests of aiohttp's: whoever carries a request, the rest of the code sees no difference."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from llmproxy.http1.transport import HTTP1Transport
from tests.test_upstream import (
    silent_port,
    test_a_body_over_the_limit_is_not_read_on,
    test_a_body_read_to_its_end_leaves_the_connection_to_the_next,
    test_a_cancelled_wait_for_the_head_tells_the_provider,
    test_a_certificate_nobody_vouches_for_is_refused,
    test_a_decompression_bomb_is_not_blown_up,
    test_a_response_nobody_asked_for_is_never_taken_for_an_answer,
    test_a_timer_that_ran_out_closes_the_connection,
    test_broken_framing_in_the_middle_does_not_hang,
    test_closing_in_the_middle_tells_the_provider_at_once,
    test_connect_timer,
    test_cookies_of_one_response_never_reach_the_next_request,
    test_decodes_a_body_that_comes_compressed_unasked,
    test_each_wait_has_its_timer,
    test_follows_no_redirect,
    test_gives_the_head_before_the_body,
    test_plugins_cannot_wait_or_read_for_ever,
    test_reads_a_body_whatever_its_pieces,
    test_sends_a_large_body_whole,
    test_sends_exactly_the_fields_it_was_given,
    test_skips_informational_responses,
    test_the_idle_timer_still_counts_after_a_pause_of_the_reader,
    test_time_in_which_nobody_reads_is_not_silence,
    test_what_cannot_be_reached_is_unreachable,
    test_what_is_not_a_whole_response_is_an_upstream_error,
)

# Collected here once more, with the fixture below in place of theirs.
__all__ = [
    "silent_port",
    "test_a_body_over_the_limit_is_not_read_on",
    "test_a_body_read_to_its_end_leaves_the_connection_to_the_next",
    "test_a_cancelled_wait_for_the_head_tells_the_provider",
    "test_a_certificate_nobody_vouches_for_is_refused",
    "test_a_decompression_bomb_is_not_blown_up",
    "test_a_response_nobody_asked_for_is_never_taken_for_an_answer",
    "test_a_timer_that_ran_out_closes_the_connection",
    "test_broken_framing_in_the_middle_does_not_hang",
    "test_closing_in_the_middle_tells_the_provider_at_once",
    "test_connect_timer",
    "test_cookies_of_one_response_never_reach_the_next_request",
    "test_decodes_a_body_that_comes_compressed_unasked",
    "test_each_wait_has_its_timer",
    "test_follows_no_redirect",
    "test_gives_the_head_before_the_body",
    "test_plugins_cannot_wait_or_read_for_ever",
    "test_reads_a_body_whatever_its_pieces",
    "test_sends_a_large_body_whole",
    "test_sends_exactly_the_fields_it_was_given",
    "test_skips_informational_responses",
    "test_the_idle_timer_still_counts_after_a_pause_of_the_reader",
    "test_time_in_which_nobody_reads_is_not_silence",
    "test_what_cannot_be_reached_is_unreachable",
    "test_what_is_not_a_whole_response_is_an_upstream_error",
]


@pytest.fixture
async def transport() -> AsyncIterator[HTTP1Transport]:
    """The lean client."""
    engine = HTTP1Transport()
    yield engine
    await engine.close()
