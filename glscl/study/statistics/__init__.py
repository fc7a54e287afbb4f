"""Paired bootstrap intervals with seeds as a random effect, Holm's correction, and the claim that both allow.

A figure of the study is the mean of a per-query value over Q queries and S trainings that differ in their seed. Both
are samples: other queries could have been written, other seeds drawn. Queries are resampled (10,000 times, the same
resamples for every model, so that comparisons are paired). Seeds are too few to be resampled: the bootstrap variance
of a mean of three is 2/3 of the true one, and its tails are those of a normal distribution. Measured on simulated
models with three seeds, 95 % intervals of the bootstrap that resamples queries and seeds hold the truth in 99 % of
cases where seeds hardly matter and in 87 % where they do.

So seeds are a random effect, as readers are in reader studies (Dorfman, Berbaum & Metz 1992; Obuchowski & Rockette
1995; Hillis 2007). With the two-way analysis of variance of the (S, Q) values::

    V       = seeds + max(queries - residual, 0)
    seeds   = variance of the S seed means / S         (holds the residual, with S - 1 degrees of freedom)
    queries = variance of the Q query means / Q        (holds the residual too, so it is taken off once)
    df      = (S - 1) (V / seeds)^(5/4)

Satterthwaite's and Hillis's df has the exponent 2. But of three seeds the ratio ``V / seeds`` is itself uncertain: when
they happen to be alike, V is too small and df too large at once, and 95 % intervals of one model's mean held the truth
in as few as 91 % of simulated cases. Exponent 1 errs a little on the other side for differences (96.6 %). The one
between was chosen by simulation of the normal model: 93.6 to 96.5 % for any share of seeds in V, with three seeds
(with two, as little as 90 % for one model's mean: take three).

Every resample of the queries is one draw of the figure; it gets normal noise for the variance that the queries do
not explain, and its deviation is multiplied by ``sqrt(df / chi²_df)``, which makes it Student's t. The 2.5 and 97.5 %
points of the draws are the interval. Differences and retention are linearised per query first, and the seed variances
of the two models add up (Welch: S - 1 above becomes ``ν = seeds² / Σ (seeds_i² / (S_i - 1))``).

p-values do not count draws: 10,000 of them end at 2/10,001, and a family of some hundred comparisons needs less. They
are tails of Student's t on the scale of the interval: the interval of level ``1 - α`` reaches from the estimate to its
95 % end times ``c(α) / c(0.05)``, and p is the α whose interval ends at the null value. So p < 0.05 exactly where the
95 % interval excludes the null value. ``c`` weights each part's own quantile by its variance (Cochran & Cox 1950)::

    c(α) = (seeds t_ν(α) + queries t_(G-1)(α)) / V

One df for both, as above, is right near 0.05 and wrong far out: where seeds make up most of V, p < 0.0001 came five
times as often as that in simulations of equal models with three seeds. So weighted it comes less often than it may,
whatever the share of the seeds (with two seeds, up to 1.7 times as often: take three). Where nothing varies there is no
t; p is then that of G signs that agree, ``2^(1 - G)``.

Assumed: seeds are exchangeable, and independent between the two models compared (if the same seed helps both, the
interval is too wide, not too narrow); seed effects are not far from normal; queries are independent, or grouped so
that the groups are (the captions of one video are not). With one seed nothing is known of the differences between
trainings: the interval then speaks of that one training, and says so. ``tests/study/test_statistics.py`` checks
the coverage.
"""

from glscl.study.statistics.bootstrap import QueryBootstrap, System, contrast, mean_difference, mean_of_cells
from glscl.study.statistics.claims import Equivalence, claim, enough_queries, enough_resamples, holm, seed_errors
from glscl.study.statistics.equivalence import equivalence_p
from glscl.study.statistics.interval import LEVEL, Array, Interval, Spread, over_seeds, per_query
from glscl.study.statistics.power import Precision, detectable, power

__all__ = [
    "LEVEL", "Array", "Equivalence", "Interval", "Precision", "QueryBootstrap", "Spread", "System", "claim",
    "contrast", "detectable", "enough_queries", "enough_resamples", "equivalence_p", "holm", "mean_difference",
    "mean_of_cells",
    "over_seeds", "per_query", "power", "seed_errors",
]  # fmt: skip
