"""Plain seeds: neighbours share nothing, browsers keep every digit."""

from pack.search.seeds import SEED_BITS, candidate_seed, child_seed, splitmix64


def test_splitmix64_gives_the_published_outputs_for_state_0_and_1234567() -> None:
    gamma = 0x9E3779B97F4A7C15
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert splitmix64(gamma) == 0x6E789E6AA1B965F4
    assert splitmix64(1234567) == 6457827717110365317
    assert splitmix64((1234567 + gamma) % 2**64) == 3203168211198807973


def test_candidate_0_is_the_users_own_seed_even_the_largest() -> None:
    for seed in (0, 1, 7, 2**50, 2**53 + 1, 2**64 - 1):
        assert candidate_seed(seed, 0) == seed


def test_fresh_seeds_stay_below_2_to_the_50_and_use_that_whole_range() -> None:
    seeds = [candidate_seed(s, i) for s in (0, 1, 2**64 - 1) for i in range(1, 1000)]
    assert all(0 <= seed < 2**SEED_BITS for seed in seeds)
    assert SEED_BITS == 50 and max(seeds) > 0.99 * 2**50 and min(seeds) < 0.01 * 2**50
    ones = [sum(seed >> bit & 1 for seed in seeds) / len(seeds) for bit in range(50)]
    assert 0.45 < min(ones) and max(ones) < 0.55


def test_neighbouring_seeds_share_no_candidate_over_many_seeds() -> None:
    seen: set[int] = set()
    for seed in range(600):
        own = {candidate_seed(seed, i) for i in range(1, 65)}
        assert len(own) == 64
        assert seen.isdisjoint(own)
        seen |= own
    assert seen.isdisjoint(range(600))


def test_streams_of_one_seed_share_nothing() -> None:
    fresh = {child_seed(7, "candidate", i) for i in range(5000)}
    drawn = {child_seed(7, "search", i) for i in range(5000)}
    assert len(fresh) == len(drawn) == 5000 and fresh.isdisjoint(drawn)
