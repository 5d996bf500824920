"""Writes f8.txt: the float32 value of every code of the 8-bit float types, as
the ml_dtypes package computes it. Usage: python3 f8.py > f8.txt"""
import ml_dtypes
import numpy as np

print(f"# ml_dtypes {ml_dtypes.__version__}: code F8_E4M3 F8_E5M2 F8_E8M0, as float32 bits or nan")
codes = np.arange(256, dtype=np.uint8)
columns = []
for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu):
    values = codes.view(dtype).astype(np.float32)
    columns.append([("nan" if np.isnan(v) else f"{v.view(np.uint32):08x}") for v in values])
for code in codes:
    print(f"{code:02x}", *(c[code] for c in columns))
