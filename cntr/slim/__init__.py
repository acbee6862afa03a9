"""``cntr slim``: an image split into what runs and the rest (the paper's other half).

The walk (``splitting``): find the image and its layers, run it in its engine and record what is opened (``record``),
complete that by rules (``rules``), verify the result on CntrFS (``verify``), write one archive (``writer``), load it
and verify it again. An attach imports nothing of it.
"""
