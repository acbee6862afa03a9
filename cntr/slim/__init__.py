"""``cntr slim``: an image split into what runs and the rest.

The paper's other half.

The walk (``splitting``): find the image and its layers, run it in its engine and record what is opened (``record``), complete
that by rules (``rules``), prove the result on CntrFS (``verify``), write one archive (``writer``), load it and prove it again.
Nothing of it is part of an attach.
"""
