; memset, memcpy, memmove: the only functions that the compiler calls on its own. And three
; accesses that may fail: cp_try_load, cp_try_store, cp_try_load_page.
;
; Whole words first, then the remaining bytes: an emulator counts one instruction a unit.

bits 64

global memset, memcpy, memmove
global cp_try_load, cp_try_store, cp_try_load_page, cp_recoveries, cp_recoveries_end

section .text.memset progbits alloc exec nowrite align=16
memset:
        mov r8, rdi
        mov rcx, rdx
        movzx eax, sil
        mov r9, 0x0101010101010101
        imul rax, r9
        shr rcx, 3
        rep stosq
        mov ecx, edx
        and ecx, 7
        rep stosb
        mov rax, r8
        ret

section .text.memcpy progbits alloc exec nowrite align=16
memmove:
        mov rax, rdi
        sub rax, rsi
        cmp rax, rdx
        jb memmove_backwards                         ; the destination begins inside the source
memcpy:
        mov rax, rdi
        mov rcx, rdx
        shr rcx, 3
        rep movsq
        mov ecx, edx
        and ecx, 7
        rep movsb
        ret

memmove_backwards:
        mov rax, rdi
        lea rdi, [rdi + rdx - 1]
        lea rsi, [rsi + rdx - 1]
        mov ecx, edx
        and ecx, 7
        std
        rep movsb
        sub rdi, 7
        sub rsi, 7
        mov rcx, rdx
        shr rcx, 3
        rep movsq
        cld
        ret

; bool cp_try_load(address, value), bool cp_try_store(address, value): 8 bytes; bool cp_try_load_page(address, words): a
; page, whose fault is resolved in the middle of it as well. The one instruction of each
; that touches the address is known to the handler of page faults by its own address: when the fault can't
; be resolved, it goes on at `try_failed` instead.
section .text.try progbits alloc exec nowrite align=16
cp_try_load:
.access:
        mov rax, [rdi]
        mov [rsi], rax
        mov eax, 1
        ret

cp_try_store:
.access:
        mov [rdi], rsi
        mov eax, 1
        ret

cp_try_load_page:
        xchg rdi, rsi
        mov ecx, 512
.access:
        rep movsq
        mov eax, 1
        ret

try_failed:
        xor eax, eax
        ret

section .rodata.recoveries progbits alloc noexec nowrite align=8
cp_recoveries:                                  ; struct cp_recovery
        dq cp_try_load.access, try_failed
        dq cp_try_store.access, try_failed
        dq cp_try_load_page.access, try_failed
cp_recoveries_end:
