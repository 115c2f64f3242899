"""Helpers that both packages use: files, process-wide state, seeds, optimiser steps, masks as rows."""
