// The checksum of a page in swap, which detects a torn, lost or flipped write.
//
// Two words at a time go into a multiplication of 64 by 64 bits whose halves are folded together, the round
// of wyhash (Wang Yi, 2019). The sum so far enters both factors, each in another way. So a word counts by its
// value and its place, and no word of the page alone can make a factor zero. Six instructions for two words.

import MemoryPrimitives

enum Checksum {
  /// Computes the checksum of the page at `page`: never 0, so that 0 can stand for a page that was never written.
  /// About 1680 instructions.
  @inline(never) static func of(_ page: UnsafeMutableRawPointer) -> UInt32 {
    let words = UnsafePointer(page.assumingMemoryBound(to: UInt64.self))
    var sum: UInt64 = 0x9e37_79b9_7f4a_7c15
    let twist: UInt64 = 0xd1b5_4a32_d192_ed03
    var at = 0
    while at < Int(Page.size) / 8 {
      for pair in 0..<8 {
        let even = words[at &+ 2 &* pair] ^ sum
        let odd = (words[at &+ 2 &* pair &+ 1] &+ sum) ^ twist
        let product = even.multipliedFullWidth(by: odd)
        sum = product.high ^ product.low
      }
      at &+= 16
    }
    let folded = UInt32(truncatingIfNeeded: sum ^ sum >> 32)
    return folded == 0 ? 1 : folded
  }
}
