// CRC-32C (Castagnoli 1993; the polynomial of iSCSI, RFC 3720 appendix B.4), four bits at a time: the table of 16 words
// is part of the code, and a megabyte costs some ten million instructions.

/// A running CRC-32C.
package struct CRC32C: Equatable, Sendable {
  private var inverted: UInt32 = .max

  package init() {}

  package var value: UInt32 { ~inverted }

  package mutating func update(_ bytes: UnsafeRawBufferPointer) {
    let table = Self.table
    var crc = inverted
    for byte in bytes {
      crc ^= UInt32(byte)
      crc = crc >> 4 ^ table[Int(crc & 15)]
      crc = crc >> 4 ^ table[Int(crc & 15)]
    }
    inverted = crc
  }

  package mutating func update(byte: UInt8) {
    withUnsafeBytes(of: byte) { update($0) }
  }

  private static var table: InlineArray<16, UInt32> {
    [
      0x0000_0000, 0x105e_c76f, 0x20bd_8ede, 0x30e3_49b1, 0x417b_1dbc, 0x5125_dad3, 0x61c6_9362, 0x7198_540d,
      0x82f6_3b78, 0x92a8_fc17, 0xa24b_b5a6, 0xb215_72c9, 0xc38d_26c4, 0xd3d3_e1ab, 0xe330_a81a, 0xf36e_6f75,
    ]
  }
}
