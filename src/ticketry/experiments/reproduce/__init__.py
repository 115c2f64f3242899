"""Campaigns: what papers claim, as files of runs and hypotheses, decided by replicates that are planned beforehand.

`campaign_file` reads and checks one, `deciding` judges its claims, `planning` says what is missing and how long it
takes, `campaign` carries it out. The files that come with the library are in ``campaigns/``.
"""
