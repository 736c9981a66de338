// The bytes behind mapped addresses, of tables that the processor loads and of others.
//
// In the first case they are where the addresses say. The tables of a host process are loaded by none: they are copied
// out of the frames that the tables lead to, page by page, as the simulated processor finds them.

import CPlatform
import MemoryPrimitives

extension PageMap {
  /// Runs `body` with the `count` bytes from `address` on, all of them mapped, 4096 at most. They are valid until it
  /// returns. Where no processor loads the tables, bytes that are not mapped are a fault report, and read as zero.
  @inline(__always) package func withMappedBytes<R>(
    from address: VirtualAddress, count: Int, _ body: (UnsafeRawBufferPointer) -> R
  ) -> R {
    guard windows.state.pointee.simulated == 0 else { return withCopy(from: address, count: count, body) }
    let start = UnsafeMutableRawPointer(bitPattern: UInt(address.rawValue)).unsafelyUnwrapped
    return body(UnsafeRawBufferPointer(start: cp_opaque(start), count: count))
  }

  private func withCopy<R>(
    from address: VirtualAddress, count: Int, _ body: (UnsafeRawBufferPointer) -> R
  ) -> R {
    var words = InlineArray<512, UInt64>(repeating: 0)
    return withUnsafeMutableBytes(of: &words) { copy in
      var done = 0
      while done < count {
        let at = address + ByteCount(UInt64(done))
        let part = min(Int(Page.size - at.offsetInPage), count - done)
        if let page = windows.reach(at.page.rawValue, .read) {
          (copy.baseAddress.unsafelyUnwrapped + done).copyMemory(
            from: page + Int(at.offsetInPage), byteCount: part)
        }
        done += part
      }
      return body(UnsafeRawBufferPointer(rebasing: copy[..<count]))
    }
  }
}
