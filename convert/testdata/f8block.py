"""Writes f8block.json: matrices as PyTorch encodes them in F8_E4M3 with a scale
for each block, scale = max |w| / 448 and code = w / scale. Usage: python3 f8block.py > f8block.json"""
import json
import torch

torch.manual_seed(7)
cases = []
for dtype, rows, cols, block in [("F32", 5, 7, (2, 4)), ("BF16", 3, 6, (1, 6)), ("F16", 3, 5, (3, 5)), ("BF16", 4, 8, (2, 8))]:
    w = torch.randn(rows, cols) * torch.logspace(-4, 0, cols)
    w[0, :2] = torch.tensor([0.0, -0.0])
    if rows == 4:
        w[2:] = 0
    scale_type = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    scales, codes = [], torch.zeros(rows, cols, dtype=torch.uint8)
    for r in range(0, rows, block[0]):
        for c in range(0, cols, block[1]):
            part = w[r:r + block[0], c:c + block[1]]
            scale = part.abs().max() / 448 if part.any() else torch.tensor(1.0)
            scale = scale.to(scale_type).float()
            scales.append(scale.item())
            code = (part / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            codes[r:r + block[0], c:c + block[1]] = code.view(torch.uint8)
    cases.append({"type": dtype, "rows": rows, "cols": cols, "block": block, "values": w.flatten().tolist(),
                  "scales": scales, "codes": codes.flatten().tolist()})
print(json.dumps(cases))
