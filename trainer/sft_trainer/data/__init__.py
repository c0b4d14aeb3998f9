"""From rows to tokens: everything here is free of torch, so that the prepare pod starts in a second."""
