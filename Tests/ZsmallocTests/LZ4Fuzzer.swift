// The entry of the fuzzer of the LZ4 codec: Scripts/fuzz-lz4 builds it with libFuzzer, which calls it with bytes that
// reach new branches. It decodes them as a block, or compresses them, with every check of LZ4Checks.

import Zsmalloc

nonisolated(unsafe) private let checks = LZ4Checks(1 << 13)

/// The first byte chooses the check and the edge; four more choose the capacity of the target and a cut of the block.
@c(LLVMFuzzerTestOneInput)
func fuzzLZ4(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
  guard let bytes, count >= 5 else { return 0 }
  let head = UnsafeBufferPointer(start: bytes, count: 5)
  let input = Array(UnsafeBufferPointer(start: bytes + 5, count: min(count - 5, 1 << 13)))
  let edge: LZ4Guarded.Edge = head[0] & 1 == 0 ? .end : .start
  let complaint =
    if head[0] & 2 == 0 {
      checks.checkDecoding(
        input, capacity: (Int(head[1]) << 8 | Int(head[2])) % 4200,
        cuts: [(Int(head[3]) << 8 | Int(head[4])) % (input.count + 1)], at: edge)
    } else {
      checks.checkRoundTrip(input, at: edge)
    }
  if let complaint { fatalError(complaint) }
  return 0
}
