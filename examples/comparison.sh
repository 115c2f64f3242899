#!/bin/sh
# A comparison for a paper: SNIP, EarlyCroP, IMP and Continuous Sparsification on a data set of one's own (stripes.py),
# three seeds each; figures, a LaTeX table and a verdict. Run it in a folder with stripes.py:
#     sh comparison.sh                       (minutes)
#     sh comparison.sh 20it train=200        (a rehearsal in seconds: nothing is learned)
set -e
LENGTH=${1:-6ep}
COMMON="--task stripes:task --option ${2:-train=2000} --recipe.length $LENGTH --replicates 3 --controls none"

ticketry search snip $COMMON --density 0.2,0.1 --name SNIP
ticketry search earlycrop $COMMON --density 0.2,0.1 --name EarlyCroP
ticketry search imp $COMMON --density 0.2,0.1 --rate 0.4 --rewind 0 --name IMP
ticketry search continuous $COMMON --density 0.1 --rounds 2 --rewind 0 --gate-lr 10 --name CS

ticketry list runs
# figures/comparison-metric-by-density.pdf, figures/results.tex and figures/verdicts.tex are for the paper.
ticketry report SNIP EarlyCroP IMP CS --output comparison.html --export figures
# The levels above are judged over three replicates; this judges IMP at 10 % from fresh seeds.
ticketry verify IMP --density 0.1 --about procedure --claim matches --controls none --seeds 3 --no-references --trust
