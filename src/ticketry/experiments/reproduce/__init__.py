"""Campaigns test claims of papers: a file lists runs and hypotheses, and trained replicates decide the hypotheses.

`campaign_file` reads and checks a campaign file, `claims` judges its claims, `blocks` lists the missing replicates
and estimates their time, and `campaign` trains them. The library's campaign files are in ``campaigns/``.
"""
