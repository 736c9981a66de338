// Inputs for the codec, from a seed: bytes of several kinds, from all zeroes to random.

import Workloads

enum LZ4Inputs {
  enum Kind: CaseIterable {
    case zeroes, random, fewSymbols, periodic, words, pointers, copies, runs
  }

  /// Bytes of a kind that the seed chooses too.
  static func any(_ count: Int, _ random: inout SeededRandom) -> [UInt8] {
    make(Kind.allCases[Int(random.below(UInt64(Kind.allCases.count)))], count, &random)
  }

  static func make(_ kind: Kind, _ count: Int, _ random: inout SeededRandom) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(count + 600)
    switch kind {
    case .zeroes: bytes = Array(repeating: 0, count: count)
    case .random: fill(&bytes, count) { $0.append(UInt8(random.below(256))) }
    case .fewSymbols:
      let symbols = 2 + random.below(6)
      fill(&bytes, count) { $0.append(UInt8(random.below(symbols)) * 37) }
    case .periodic:
      let period = 1 + Int(random.below(random.oneIn(4) ? 2000 : 40))
      for _ in 0..<period { bytes.append(UInt8(random.below(256))) }
      // A byte that differs now and then ends the matches.
      let errors = random.oneIn(2) ? 0 : 1 + random.below(300)
      fill(&bytes, count) {
        $0.append(errors > 0 && random.oneIn(errors + 1) ? UInt8(random.below(256)) : $0[$0.count - period])
      }
    case .words:
      let words = (0..<60).map { _ in
        (0..<1 + random.below(11)).map { _ in UInt8(97 + random.below(26)) } + [32]
      }
      fill(&bytes, count) { $0 += words[Int(random.below(60))] }
    case .pointers:
      fill(&bytes, count) { bytes in
        let word = random.oneIn(3) ? random.below(50) : 0xffff_8000_0000_0000 | random.below(1 << 22) << 4
        withUnsafeBytes(of: word.littleEndian) { bytes += $0 }
      }
    case .copies: copies(&bytes, count, &random)
    case .runs:
      fill(&bytes, count) {
        $0 += Array(
          repeating: UInt8(random.below(4)), count: 1 + Int(random.below(random.oneIn(5) ? 600 : 30)))
      }
    }
    return Array(bytes.prefix(count))
  }

  /// Literals and copies of earlier bytes in turn, of lengths around those at which the format changes its form.
  private static func copies(_ bytes: inout [UInt8], _ count: Int, _ random: inout SeededRandom) {
    let edges = [0, 1, 4, 8, 14, 15, 16, 18, 19, 20, 269, 270, 271, 273, 274, 275]
    while bytes.count < count {
      for _ in 0..<edges[Int(random.below(16))] { bytes.append(UInt8(random.below(256))) }
      guard !bytes.isEmpty else { continue }
      let distance = 1 + Int(random.below(UInt64(random.oneIn(2) ? bytes.count : min(bytes.count, 20))))
      for _ in 0..<edges[Int(random.below(16))] { bytes.append(bytes[bytes.count - distance]) }
    }
  }

  private static func fill(_ bytes: inout [UInt8], _ count: Int, _ append: (inout [UInt8]) -> Void) {
    while bytes.count < count { append(&bytes) }
  }

  /// A block that differs from a well-formed one in a few bytes, or that is cut or lengthened.
  static func mutate(_ block: [UInt8], _ random: inout SeededRandom) -> [UInt8] {
    var block = block
    for _ in 0...random.below(4) {
      let at = Int(random.below(UInt64(block.count + 1)))
      switch random.below(6) {
      case 0: block = Array(block.prefix(at))
      case 1: block.insert(UInt8(random.below(256)), at: at)
      case 2 where at < block.count: block.remove(at: at)
      case 3 where at < block.count: block[at] = 255
      case 4 where at < block.count: block[at] = random.oneIn(2) ? 0 : 15
      case _ where at < block.count: block[at] ^= 1 << UInt8(random.below(8))
      default: block.append(UInt8(random.below(256)))
      }
    }
    return block
  }
}
