"""The policies of SparCL (TDM, DDR, DGM) and their control, a fixed mask."""
