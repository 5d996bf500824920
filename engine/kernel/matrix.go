package kernel

// Matrix is a view of Rows rows of Cols elements whose starts lie Stride
// elements apart in Data. With an Index, row i of the view is row Index[i] of
// Data, so that scattered rows take part in a product without being copied.
type Matrix struct {
	Data               []float32
	Rows, Cols, Stride int
	Index              []int32
}

// NewMatrix views data as rows of cols elements without gaps.
func NewMatrix(data []float32, rows, cols int) Matrix {
	return Matrix{Data: data[:rows*cols], Rows: rows, Cols: cols, Stride: cols}
}

// Row returns row i.
func (m *Matrix) Row(i int) []float32 {
	if m.Index != nil {
		i = int(m.Index[i])
	}
	return m.Data[i*m.Stride:][:m.Cols:m.Cols]
}

// Columns views n columns from first on.
func (m Matrix) Columns(first, n int) Matrix {
	if m.Rows > 0 {
		m.Data = m.Data[first:]
	}
	m.Cols = n
	return m
}

// Slice views n rows from first on.
func (m Matrix) Slice(first, n int) Matrix {
	if m.Index != nil {
		m.Index = m.Index[first : first+n]
	} else if n > 0 {
		m.Data = m.Data[first*m.Stride:]
	}
	m.Rows = n
	return m
}

// Gather views the rows named by index.
func (m Matrix) Gather(index []int32) Matrix {
	m.Index, m.Rows = index, len(index)
	return m
}
