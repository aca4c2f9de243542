package linefile

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
)

const crcLen = 8 // hex digits

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendLine adds one JSON object as a line. JSON as encoding/json writes it
// holds no newline.
func AppendLine(line, data []byte) []byte {
	sum := crc32.Checksum(data, castagnoli)
	line = hex.AppendEncode(line, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	line = append(line, ' ')
	line = append(line, data...)
	return append(line, '\n')
}

// DecodeLine gives the object of a line, which is part of it.
func DecodeLine(line []byte) ([]byte, error) {
	if len(line) < crcLen+2 || line[crcLen] != ' ' || line[len(line)-1] != '\n' {
		return nil, errors.New("a line is not complete")
	}
	data := line[crcLen+1 : len(line)-1]
	var sum [4]byte
	if _, err := hex.Decode(sum[:], line[:crcLen]); err != nil {
		return nil, errors.New("a line has no checksum")
	}
	want := uint32(sum[0])<<24 | uint32(sum[1])<<16 | uint32(sum[2])<<8 | uint32(sum[3])
	if crc32.Checksum(data, castagnoli) != want {
		return nil, errors.New("a line has a wrong checksum")
	}
	return data, nil
}

// scan gives the lines of r to take, up to the first one that is not as it
// should be; size is that of the lines before, fault what is wrong with it. Zeros
// up to the end are no fault: they are what a window had not been filled with.
func scan(r io.Reader, maxLine int, take func(data []byte, end int64) error) (size int64, fault, err error) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		if next, _ := in.Peek(1); len(next) == 1 && next[0] == 0 {
			return onlyZeros(in, size)
		}
		line, err := in.ReadSlice('\n')
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && len(line) == 0:
			return size, nil, nil
		case errors.Is(err, io.EOF):
			return size, errors.New("the last line was not written to its end"), nil
		case errors.Is(err, bufio.ErrBufferFull) && bytes.IndexByte(line, 0) >= 0:
			return size, errors.New("a line was not written to its end"), nil
		case errors.Is(err, bufio.ErrBufferFull):
			return size, errors.New("a line is too long"), nil
		default:
			return size, nil, err
		}
		data, fault := DecodeLine(line)
		if fault == nil {
			fault = take(data, size+int64(len(line)))
		}
		if fault != nil {
			return size, fault, nil
		}
		size += int64(len(line))
	}
}

func onlyZeros(in *bufio.Reader, size int64) (int64, error, error) {
	for {
		chunk, err := in.Peek(max(1, in.Buffered()))
		if len(bytes.TrimLeft(chunk, "\x00")) > 0 {
			return size, errors.New("a line was not written from its beginning"), nil
		}
		if errors.Is(err, io.EOF) {
			return size, nil, nil
		}
		if err != nil {
			return size, nil, err
		}
		if _, err := in.Discard(len(chunk)); err != nil {
			return size, nil, err
		}
	}
}

// lineWriter gathers lines.
type lineWriter struct {
	to   io.Writer
	buf  []byte
	size int64
}

const gathered = 64 << 10 // bytes

func (w *lineWriter) add(data []byte) error {
	w.buf = AppendLine(w.buf, data)
	if len(w.buf) < gathered {
		return nil
	}
	return w.flush()
}

func (w *lineWriter) flush() error {
	n, err := w.to.Write(w.buf)
	w.size += int64(n)
	w.buf = w.buf[:0]
	return err
}
